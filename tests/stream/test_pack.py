"""Packed weights hold the numbers they should, where they should."""

import pytest
import torch

from longstream.stream import pack
from longstream.stream.pack import WEIGHTS, aligned_bytes, int8_scale, panels, plain, rounded, scales

PANEL = 16


def written(piece):
    memory = aligned_bytes(piece.nbytes).fill_(255)
    piece.write(memory)
    return memory


def unpacked(piece, weights, n_out, n_in, group=1):
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[weights]
    packed = written(piece).view(dtype).view(-1, -(-n_in // group), PANEL, group)
    if weights == "int8" and group == 4:
        words, bytes_ = packed.view(torch.int32), []
        for _ in range(4):
            bytes_.append(words.to(torch.int8))  # the lowest byte
            words = (words - bytes_[-1]) >> 8
        packed = torch.cat(bytes_, -1)
    packed = packed.float()
    matrix = packed.transpose(1, 2).flatten(2).flatten(0, 1)
    assert not matrix[n_out:].any()
    assert not matrix[:, n_in:].any()
    return matrix[:n_out, :n_in]


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("sizes", [[1], [16], [5, 16, 30], [64, 64], [33]])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("n_in", [1, 7, 8])
def test_panels_hold_the_joined_rows(weights, sizes, n_in, group):
    matrices = [torch.randn(n, n_in) * 10 ** torch.randn(n, 1) for n in sizes]
    got = unpacked(panels(matrices, weights, PANEL, group), weights, sum(sizes), n_in, group)
    if weights == "int8":
        assert got.abs().max() == 127
        assert torch.equal(got.abs().amax(1), torch.full((sum(sizes),), 127.0))
        got = got * scales(matrices)[:, None]
    assert torch.equal(got, rounded(torch.cat(matrices), weights))


def test_pieces_of_many_rows_are_packed_as_few(monkeypatch):
    matrix = torch.randn(100, 3)
    for weights in WEIGHTS:
        whole = written(panels([matrix], weights, PANEL, 2))
        monkeypatch.setattr(pack, "_ROWS", 32)
        assert torch.equal(written(panels([matrix], weights, PANEL, 2)), whole)
        monkeypatch.undo()


def test_a_transposed_matrix_is_packed_as_it_reads():
    matrix = torch.randn(7, 20).t()
    assert torch.equal(unpacked(panels([matrix], "float32", PANEL, 1), "float32", 20, 7), matrix)


def test_int8_rounds_to_the_nearest_step_of_its_row():
    matrix = torch.tensor([[254.0, 3.0, -2.9, 1.1], [0.0, 0.0, 0.0, 0.0], [-1e-3, 1e-3, 4e-6, 3e-6]])
    scale = int8_scale(matrix)
    torch.testing.assert_close(scale, torch.tensor([2.0, 1.0, 1e-3 / 127]))
    expected = torch.tensor([[254.0, 4.0, -2.0, 2.0], [0, 0, 0, 0], [-1e-3, 1e-3, 1e-3 / 127, 0]])  # 1.5 rounds to even
    torch.testing.assert_close(rounded(matrix, "int8"), expected, rtol=1e-6, atol=0)
    matrix = torch.randn(50, 30)
    assert ((rounded(matrix, "int8") - matrix).abs() <= 0.5001 * int8_scale(matrix)[:, None]).all()


def test_bfloat16_rounds_to_the_nearest_and_float32_not_at_all():
    matrix = torch.randn(40, 30)
    assert torch.equal(rounded(matrix, "float32"), matrix)
    error = (rounded(matrix, "bfloat16") - matrix).abs() / matrix.abs()
    assert 2**-10 < error.max() <= 2**-8
    with pytest.raises(ValueError, match="weights must be one of"):
        rounded(matrix, "fp8")


def test_plain_numbers_stand_in_order():
    tensor = torch.arange(12).view(3, 4).t()
    assert written(plain(tensor)).view(torch.int64).tolist() == tensor.flatten().tolist()
    assert written(plain(torch.tensor([True, False]))).tolist() == [1, 0]


def test_memory_is_aligned():
    for count in (0, 1, 63, 64, 1000):
        memory = aligned_bytes(count)
        assert len(memory) == count
        assert memory.data_ptr() % 64 == 0
