"""State: keeping, forking, saving, and being refused."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from longstream.models import HGRN2Config, LanguageModel, ModelConfig, State
from longstream.models import state as state_module

CONFIG = ModelConfig(hidden_size=12, num_layers=2, vocab_size=11, mixer=HGRN2Config(expand_ratio=4, conv_size=3))


@pytest.fixture
def model() -> LanguageModel:
    torch.manual_seed(0)
    return LanguageModel(CONFIG)


def after(model: LanguageModel, rows: int = 2, T: int = 7) -> State:
    with torch.no_grad():
        return model(torch.arange(rows * T).view(rows, T) % 11)[1]


def equal(a: State, b: State) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True))


def test_size_does_not_grow(model: LanguageModel):
    short, long = after(model, T=1), after(model, T=300)
    assert short.nbytes == long.nbytes
    assert long.position.tolist() == [300, 300]
    H, K, W, D, L, B = 3, 4, 3, 12, 2, 2
    assert short.nbytes == B * L * 4 * (H * K * K + (W - 1) * 3 * D) + B * 8


def test_clone_shares_no_memory(model: LanguageModel):
    state = after(model)
    twin = state.clone()
    twin.layers[0].S.zero_()
    assert state.layers[0].S.abs().sum() > 0


def test_select_repeat_and_fork(model: LanguageModel):
    state = after(model, rows=3)
    picked = state.select([2, 0, 2])
    assert torch.equal(picked.layers[1].S[0], state.layers[1].S[2])
    assert torch.equal(picked.layers[1].conv[1], state.layers[1].conv[0])
    assert equal(state.repeat_interleave(2), state.select([0, 0, 1, 1, 2, 2]))
    assert equal(state.select([1]).fork(3), state.select([1, 1, 1]))
    with pytest.raises(ValueError, match="needs a state of one row, got 3"):
        state.fork(2)


def test_save_load_replay_is_bit_identical(model: LanguageModel, tmp_path: Path):
    state = after(model)
    state.save(tmp_path / "state.safetensors")
    restored = State.load(tmp_path / "state.safetensors")
    assert equal(state, restored)
    token = torch.tensor([3, 4])
    with torch.no_grad():
        for _ in range(5):
            (a, state), (b, restored) = model.step(token, state), model.step(token, restored)
            assert torch.equal(a, b)
    assert equal(state, restored)
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]  # nothing left beside it


def test_save_overwrites_only_when_asked(model: LanguageModel, tmp_path: Path):
    path = tmp_path / "state.safetensors"
    after(model, T=1).save(path)
    with pytest.raises(FileExistsError, match="pass overwrite=True"):
        after(model, T=2).save(path)
    assert State.load(path).position.tolist() == [1, 1]
    after(model, T=2).save(path, overwrite=True)
    assert State.load(path).position.tolist() == [2, 2]


def test_a_failed_save_leaves_the_old_file(model: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state.safetensors"
    after(model, T=1).save(path)

    def full_disk(tensors: object, filename: Path, **_: object) -> None:
        Path(filename).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        after(model, T=2).save(path, overwrite=True)
    assert State.load(path).position.tolist() == [1, 1]
    assert [p.name for p in tmp_path.iterdir()] == ["state.safetensors"]


def test_files_that_are_no_state(model: LanguageModel, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no file"):
        State.load(tmp_path / "missing")
    whole = tmp_path / "state.safetensors"
    after(model).save(whole)
    cut = tmp_path / "cut"
    cut.write_bytes(whole.read_bytes()[:-10])
    with pytest.raises(ValueError, match="damaged or not the file of a longstream State"):
        State.load(cut)
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="damaged or not the file of a longstream State"):
        State.load(tmp_path / "empty")
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, other)
    with pytest.raises(ValueError, match="safetensors file of something else"):
        State.load(other)


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 3}, {"mixer": HGRN2Config(expand_ratio=6, conv_size=3)}, {"lower_bound": None}, {"norm_eps": 1e-5}],
)
def test_another_model_refuses_the_state(model: LanguageModel, change: dict):
    other = LanguageModel(ModelConfig(**{**vars(CONFIG), **change}))
    with pytest.raises(ValueError, match=r"belongs to another model: expected fingerprint \w+, got \w+"):
        other(torch.zeros(2, 1, dtype=torch.long), after(model))


def test_the_same_configuration_accepts_the_state(model: LanguageModel):
    twin = LanguageModel(CONFIG)
    assert twin(torch.zeros(2, 1, dtype=torch.long), after(model))[0].shape == (2, 1, 11)


def test_wrong_batch_and_wrong_type(model: LanguageModel):
    with pytest.raises(ValueError, match="state must have 3 rows, one for each sequence, got 2"):
        model(torch.zeros(3, 1, dtype=torch.long), after(model))
    with pytest.raises(TypeError, match="state must be a State or None, got tuple"):
        model(torch.zeros(2, 1, dtype=torch.long), (1, 2))  # type: ignore[arg-type]


def test_a_model_in_bfloat16_keeps_a_float32_state(model: LanguageModel):
    state = after(model.bfloat16())
    assert all(t.dtype == torch.float32 for t in state.tensors()[:-1])


def test_rows_are_selected_by_number(model: LanguageModel):
    state = after(model)
    assert state.select([]).batch_size == 0
    for wrong in (torch.tensor([True, False]), [0.5], torch.tensor(1)):
        with pytest.raises(ValueError, match="indices must be row numbers"):
            state.select(wrong)  # type: ignore[arg-type]
    for outside in (-1, 2):
        with pytest.raises(ValueError, match=rf"State.select: indices must lie in \[0, 2\), got \[0, {outside}\]"):
            state.select([0, outside])


def test_a_state_on_another_device(model: LanguageModel):
    with pytest.raises(ValueError, match=r"state must be on cpu like x, got meta; see State\.to"):
        model(torch.zeros(2, 1, dtype=torch.long), after(model).to("meta"))


def test_a_missing_directory(model: LanguageModel, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no directory"):
        after(model).save(tmp_path / "missing" / "state.safetensors")


def test_bytes_are_those_of_the_file(model: LanguageModel, tmp_path: Path):
    state = after(model)
    data = state.serialize()
    assert equal(State.deserialize(data), state)
    assert State.deserialize(bytearray(data)).fingerprint == state.fingerprint
    state.save(tmp_path / "state.safetensors")
    (tmp_path / "copy.safetensors").write_bytes(data)
    assert equal(State.load(tmp_path / "copy.safetensors"), State.load(tmp_path / "state.safetensors"))
    assert [type(layer) for layer in State.deserialize(data).layers] == [type(layer) for layer in state.layers]
    with pytest.raises(TypeError, match=r"State\.deserialize: data must be bytes, got str"):
        State.deserialize("state.safetensors")  # type: ignore[arg-type]


def test_tensors_that_share_memory_are_saved(model: LanguageModel, tmp_path: Path):
    state = after(model, rows=1)
    whole = torch.arange(200.0)
    layer = state.layers[0]
    views = type(layer)(*(whole[: t.numel()].view(t.shape) for t in layer))
    shared = State((views, layer), state.position, state.fingerprint)
    shared.save(tmp_path / "state.safetensors")
    assert equal(State.load(tmp_path / "state.safetensors"), shared)
    assert equal(State.deserialize(shared.serialize()), shared)


def test_bytes_that_are_cut_or_altered_anywhere_are_refused(model: LanguageModel):
    data = after(model, rows=1, T=1).serialize()
    for size in range(0, len(data), 7):
        with pytest.raises(ValueError, match=r"State\.deserialize: data are damaged"):
            State.deserialize(data[:size])
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"State\.deserialize: data are damaged"):
            State.deserialize(bytes(altered))
    with pytest.raises(ValueError, match="data are damaged"):
        State.deserialize(data + b"0")


def test_what_a_file_says_of_itself_is_checked(model: LanguageModel):
    state = after(model)
    named, about = state._as_file()
    for change, said in [
        ({"fingerprint": "another"}, "its checksum is another: it was altered"),
        ({"sha256": "0" * 64}, "its checksum is another: it was altered"),
        ({"sha256": None}, "it has no checksum"),
    ]:
        wrong = {key: value for key, value in {**about, **change}.items() if value is not None}
        with pytest.raises(ValueError, match=said):
            State.deserialize(safetensors.torch.save(named, metadata=wrong))
    with pytest.raises(ValueError, match="its checksum is another"):
        State.deserialize(safetensors.torch.save({**named, "position": named["position"] + 1}, metadata=about))
    unknown = {**about, "layers": about["layers"].replace("HGRN2State", "NobodysState")}
    unknown["sha256"] = state_module._digest(named, unknown)
    with pytest.raises(ValueError, match="no state of the name NobodysState is known"):
        State.deserialize(safetensors.torch.save(named, metadata=unknown))


def test_bytes_by_layer(model: LanguageModel):
    state = after(model)
    assert len(state.layer_nbytes) == 2
    assert sum(state.layer_nbytes) + state.position.nbytes == state.nbytes
