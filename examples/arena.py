"""A small game for two, for realtime_bot.py: what happens, what a frame shows of it, what an expert would do, and a
connection over which the other player's inputs arrive late.

Two players run and jump on a line, 60 frames a second, among balls that fly about. From time to time the referee shows
one of four signs for a few frames, and much later raises a flag: whoever is asked then must press the button of that
sign at once. Nothing in between tells which sign it was. A frame is FRAME numbers:

    56 + 56  each player: position, velocity, on the ground, next to a wall, facing, last jump (8); the last action (8);
             the position once more as soft cells, 25 along and 15 up
    4        between them: distance along, distance up, distance, closing speed
    35       five balls: position, velocity, where they are relative to the bot (2), how near
    112      a name tag for each player, 56 numbers that mean nothing and last as long as the match
    20       lamps: four signs, the flag, and fifteen that flicker
    4        the stage: its ends, its gravity, how fast a player runs

Everything is NumPy and float32, for any number of matches side by side; the numbers of a match do not depend on those
beside it.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FRAME = 287
RATE = 60  # frames a second
MATCH = 600  # frames of a match: ten seconds
MOVES = ("stay", "left", "right", "jump")
SIGNS = 4
MOST_LATE = 10  # frames that the other player's input may be late

_SPEED, _ACCELERATION, _FRICTION, _JUMP, _GRAVITY = 0.030, 0.006, 0.8, 0.055, 0.005
_SIGN_FRAMES, _FLAG_FRAMES = 8, 3
_DELAY = (30, 60)  # frames from a sign to its flag: at least, and less than
_PAUSE = (10, 20)  # frames from a flag to the next sign
_HOLD = (3, 10)  # frames for which the other player keeps to one action
_CELLS_X, _CELLS_Y = np.linspace(-1, 1, 25, dtype=np.float32), np.linspace(0, 0.5, 15, dtype=np.float32)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class World(NamedTuple):
    """What moves in N matches; player 0 is the bot, player 1 the other one."""

    position: Floats  # (N, 2, 2), along and up
    velocity: Floats  # (N, 2, 2)
    action: Ints  # (N, 2, 2), the last move and the last button, 0 for none
    balls: Floats  # (N, 5, 4), position and velocity


class Script(NamedTuple):
    """What is settled before N matches begin."""

    start: World
    lamps: Floats  # (N, T, 20)
    answers: Ints  # (N, T): the button to press, 0 for none
    asked: NDArray[np.bool_]  # (N, T): the first frame of a flag, when nothing but memory tells the answer
    other: Ints  # (N, T, 2): what the other player does
    tags: Floats  # (N, 112)


class Recording(NamedTuple):
    """N matches in which the bot's player was the expert."""

    script: Script
    frames: Floats  # (N, T, FRAME)
    actions: Ints  # (N, T, 2): the expert's move and button


def write_script(matches: int, frames: int, seed: int) -> Script:
    """Draw what is settled beforehand."""
    rng = np.random.default_rng(seed)
    position = np.stack([rng.uniform(-0.9, 0.9, (matches, 2)), np.zeros((matches, 2))], axis=-1)
    balls = np.concatenate([rng.uniform((-1, 0), (1, 0.5), (matches, 5, 2)), rng.normal(0, 0.01, (matches, 5, 2))], -1)
    still = np.zeros((matches, 2, 2))
    start = World(position.astype(np.float32), still.astype(np.float32), still.astype(np.int64), balls.astype("f4"))
    lamps = np.zeros((matches, frames, 20), dtype=np.float32)
    lamps[:, :, 5:] = rng.random((matches, frames, 15)) < 0.1
    answers = np.zeros((matches, frames), dtype=np.int64)
    asked = np.zeros((matches, frames), dtype=bool)
    other = np.zeros((matches, frames, 2), dtype=np.int64)
    for n in range(matches):
        t = int(rng.integers(*_PAUSE))
        while t + max(_DELAY) + _FLAG_FRAMES < frames:
            sign, flag = rng.integers(SIGNS), t + int(rng.integers(*_DELAY))
            lamps[n, t : t + _SIGN_FRAMES, sign] = 2
            lamps[n, flag : flag + _FLAG_FRAMES, SIGNS] = 2
            answers[n, flag : flag + _FLAG_FRAMES] = 1 + sign
            asked[n, flag] = True
            t = flag + int(rng.integers(*_PAUSE))
        t = 0
        while t < frames:
            hold = int(rng.integers(*_HOLD))
            other[n, t : t + hold, 0] = rng.integers(len(MOVES))
            t += hold
    return Script(start, lamps, answers, asked, other, (rng.random((matches, 112)) < 0.1).astype(np.float32))


def advance(world: World, bot: Ints, other: Ints) -> World:
    """The next frame's world, after an action (N, 2) of each player."""
    action = np.stack([bot, other], axis=1)  # (N, 2, 2)
    move, (x, y), (vx, vy) = action[..., 0], np.moveaxis(world.position, -1, 0), np.moveaxis(world.velocity, -1, 0)
    push = np.float32(_ACCELERATION) * ((move == 2).astype(np.float32) - (move == 1))
    vx = np.where(push == 0, vx * np.float32(_FRICTION), np.clip(vx + push, -_SPEED, _SPEED))
    vy = np.where((move == 3) & (y <= 0), np.float32(_JUMP), vy - np.float32(_GRAVITY))
    x, y = np.clip(x + vx, -1, 1), np.maximum(y + vy, 0)
    velocity = np.stack([vx, np.where(y <= 0, 0, vy)], axis=-1)
    centers, speeds = world.balls[..., :2] + world.balls[..., 2:], world.balls[..., 2:]
    low, high = np.array([-1, 0], dtype=np.float32), np.array([1, 0.5], dtype=np.float32)
    speeds = np.where((centers < low) | (centers > high), -speeds, speeds)
    balls = np.concatenate([np.clip(centers, low, high), speeds], axis=-1)
    return World(np.stack([x, y], axis=-1), velocity.astype(np.float32), action, balls)


def observe(world: World, script: Script, t: int) -> Floats:
    """The frame t that the worlds (N) show: (N, FRAME)."""
    N, (x, y) = len(world.position), np.moveaxis(world.position, -1, 0)  # (N, 2) each
    body = np.concatenate(
        [
            world.position,
            20 * world.velocity,
            np.stack([y <= 0, np.abs(x) > 0.95, np.sign(world.velocity[..., 0]), y / 0.3], axis=-1),
            world.action[..., :1] == np.arange(len(MOVES)),
            world.action[..., 1:] == np.arange(1, 1 + SIGNS),
            np.exp(-np.square((x[..., None] - _CELLS_X) * 12)),
            np.exp(-np.square((y[..., None] - _CELLS_Y) * 30)),
        ],
        axis=-1,
    )  # (N, 2, 56)
    apart = world.position[:, 1] - world.position[:, 0]  # (N, 2)
    closing = (world.velocity[:, 1] - world.velocity[:, 0]) * np.sign(apart) * 20
    between = np.stack([apart[:, 0], apart[:, 1], np.abs(apart).sum(-1), closing[:, 0]], axis=-1)
    from_bot = world.balls[..., :2] - world.position[:, :1]  # (N, 5, 2)
    near = np.exp(-np.square(from_bot * 6).sum(-1, keepdims=True))
    balls = np.concatenate([world.balls[..., :2], 50 * world.balls[..., 2:], from_bot, near], axis=-1)
    stage = np.broadcast_to(np.array([-1, 1, 100 * _GRAVITY, 10 * _SPEED]), (N, 4))
    parts = [body.reshape(N, 112), between, balls.reshape(N, 35), script.tags, script.lamps[:, t], stage]
    return np.concatenate(parts, axis=-1).astype(np.float32)


def expert(world: World, script: Script, t: int) -> Ints:
    """What a good player does in frame t: keeps the other at arm's length, jumps over balls, and answers flags."""
    apart = world.position[:, 1, 0] - world.position[:, 0, 0]
    from_bot = world.balls[..., :2] - world.position[:, :1]
    danger = ((np.abs(from_bot[..., 0]) < 0.08) & (from_bot[..., 1] < 0.1)).any(-1) & (world.position[:, 0, 1] <= 0)
    toward, away = np.where(apart > 0, 2, 1), np.where(apart > 0, 1, 2)
    move = np.where(np.abs(apart) > 0.5, toward, np.where(np.abs(apart) < 0.25, away, 0))
    return np.stack([np.where(danger, 3, move), script.answers[:, t]], axis=-1)


def record(matches: int, frames: int, seed: int) -> Recording:
    """Let the expert play."""
    script = write_script(matches, frames, seed)
    world, shown, actions = script.start, [], []
    for t in range(frames):
        shown.append(observe(world, script, t))
        actions.append(expert(world, script, t))
        world = advance(world, actions[-1], script.other[:, t])
    return Recording(script, np.stack(shown, axis=1), np.stack(actions, axis=1))


class Arrival(NamedTuple):
    """What a tick of the clock brings: take back ``back`` frames, then take in ``frames``, the last one the newest."""

    back: int
    frames: Floats  # (n, FRAME)
    world: World  # as the player sees it now


def connection(recording: Recording, seed: int) -> Iterator[Arrival]:
    """One recorded match (N = 1) as it comes over a network: every few frames the other player's inputs are late.

    The game does not wait for them: it goes on as if the other player kept doing what was last heard of, and when the
    true inputs come it plays those frames again. Where they show anything else than was shown, they are sent again.
    """
    rng, script = np.random.default_rng(seed), recording.script
    T = recording.frames.shape[1]
    worlds, shown = [script.start], [recording.frames[0, 0]]
    yield Arrival(0, shown[0][None], script.start)
    known = 0  # the other player's inputs before this frame are known
    late, until = False, 0  # whether they are late now, and the frame at which that changes
    for t in range(1, T):
        if t == T - 1 or t >= until:
            late = not late and t < T - 1
            until = t + int(rng.integers(2, 1 + MOST_LATE) if late else rng.integers(1, 5))
        first = t  # the first frame that must be shown, or shown again
        if late:
            heard = script.other[:, max(known - 1, 0)]
            worlds.append(advance(worlds[-1], recording.actions[:, t - 1], heard))
        else:
            del worlds[known + 1 :]
            for s in range(known, t):
                worlds.append(advance(worlds[s], recording.actions[:, s], script.other[:, s]))
            wrong = (s for s in range(known, t) if not np.array_equal(observe(worlds[s], script, s)[0], shown[s]))
            first, known = next(wrong, t), t
        shown[first:] = [observe(worlds[s], script, s)[0] for s in range(first, t + 1)]
        yield Arrival(t - first, np.stack(shown[first:]), worlds[t])
