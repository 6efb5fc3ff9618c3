"""Slow, plain readers of the sequences: which places ask, and for what, from the inputs and the rules alone."""


def solve(task, inputs):
    """{place: answer} of one sequence; memorization has no answers in it and is left to its own test."""
    tokens = [int(token) for token in inputs]
    assert len(tokens) == task.length
    return SOLVERS[task.name](task, tokens)


def mqar(task, tokens):
    pairs = 2 * task.num_pairs
    value = dict(zip(tokens[0:pairs:2], tokens[1:pairs:2], strict=True))
    assert len(value) == task.num_pairs
    return {place: value[token] for place, token in enumerate(tokens) if place >= pairs and token in value}


def associative_recall(task, tokens):
    n, prompt = task.key_len, tokens.index(task.vocabulary - 1)
    assert prompt == len(tokens) - 1 - n
    value = {}
    for start in range(0, prompt, n + 1):
        key = tuple(tokens[start : start + n])
        assert value.setdefault(key, tokens[start + n]) == tokens[start + n]
    return {len(tokens) - 1: value.get(tuple(tokens[prompt + 1 :]), task.vocabulary - 2)}


def induction_heads(task, tokens):
    n, trigger = task.answer_len, task.vocabulary - 1
    places = [place for place, token in enumerate(tokens) if token == trigger]
    assert len(places) == task.triggers + 1
    answers = {tuple(tokens[place + 1 : place + 1 + n]) for place in places[:-1]}
    assert len(answers) == 1
    (answer,) = answers
    assert len(answer) == n
    assert trigger not in answer
    assert tuple(tokens[places[-1] + 1 :]) == answer[:-1]
    return {places[-1] + i: token for i, token in enumerate(answer)}


def selective_copying(task, tokens):
    mad, ask = task.rules == "mad", len(tokens) - task.num_tokens
    blank, marker = (task.vocabulary - 2 if mad else 0), task.vocabulary - 1
    symbols = [token for token in tokens if token not in (blank, marker)]
    assert tokens.index(marker) == (ask - 1 if mad else ask)
    assert all(token == (blank if mad else marker) for token in tokens[ask:])
    return {ask + i: token for i, token in enumerate(symbols)}


def copying(task, tokens):
    n = task.num_tokens
    assert tokens[n:] == [task.vocabulary - 2] * task.delay + [task.vocabulary - 1] * n
    return {n + task.delay + i: token for i, token in enumerate(tokens[:n])}


def in_context_recall(task, tokens, noise=0):
    symbols = task.vocabulary - noise - (not task.multi_query)
    value, asked = {}, {}
    if not task.multi_query:
        *tokens, prompt, last = tokens
        assert prompt == task.vocabulary - 1
        tokens += [last, None]
    for place in range(0, len(tokens), 2):
        key, said = tokens[place : place + 2]
        if key >= symbols:
            assert said >= symbols
            assert place < len(tokens) - 2, "noise is no last pair"
            continue
        assert key < symbols // 2
        assert said is None or symbols // 2 <= said < symbols
        if key in value:
            assert said in (value[key], None)
            asked[place] = value[key]
        value.setdefault(key, said)
    if not task.multi_query:
        return {task.length - 1: value[tokens[-2]]}
    assert len(tokens) - 2 in asked
    return asked


def noisy_recall(task, tokens):
    return in_context_recall(task, tokens, task.noise_vocabulary)


def fuzzy_recall(task, tokens):
    symbols = task.vocabulary - 2 + task.multi_query
    length = next((place for place, token in enumerate(tokens) if token == symbols), len(tokens))
    assert all(token == symbols for token in tokens[length:]), "pads are at the end"
    words, prompt = [], None  # (place of the first token, tokens): keys and values in turn
    for place, token in enumerate(tokens[:length]):
        if token == task.vocabulary - 1:
            prompt = place
            continue
        is_key = token < symbols // 2
        if not words or is_key != (words[-1][1][0] < symbols // 2):
            words.append((place, []))
        words[-1][1].append(token)
    value, asked = {}, {}
    for (_, key), (place, word) in zip(words[::2], words[1::2], strict=True):
        assert 1 <= len(set(key)) == len(key) <= task.key_len
        assert 1 <= len(set(word)) == len(word) <= task.value_len
        if tuple(key) in value:
            assert value[tuple(key)] == word
            if task.multi_query or place > prompt:
                asked.update({place + i - 1: token for i, token in enumerate(word)})
        value.setdefault(tuple(key), word)
    assert length - 2 in asked, "the last word is asked"
    return asked


def compression(task, tokens):
    n = task.num_tokens
    assert tokens[n] == task.vocabulary - 1
    assert task.vocabulary - 1 not in tokens[:n]
    assert sorted(tokens[n + 1 :]) == [task.vocabulary + i for i in range(n)]
    return {place: tokens[tokens[place] - task.vocabulary] for place in range(n + 1, 2 * n + 1)}


SOLVERS = {
    function.__name__: function
    for function in (
        mqar,
        associative_recall,
        induction_heads,
        selective_copying,
        copying,
        in_context_recall,
        noisy_recall,
        fuzzy_recall,
        compression,
    )
}
