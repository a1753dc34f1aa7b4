"""The compiled draws behind :mod:`models.beds`: one draw is one possible future of the whole hospital.

Everybody present is walked through the segments between the windows' edges on their own: reaches a bed or not, moves
to another specialty or not, leaves or not. Who is still to come is drawn as Poisson given each day's factor, and then
walked in the same way. Nothing is approximated by a normal, so the sums over patients are exact Poisson-binomial draws;
and since all windows and levels read the same draws, they add up in every one of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from features.kernels import compiled, inlined

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Dial = tuple[Floats, npt.NDArray[np.int32]]

FLOWS: Final = ("known", "in_ed", "to_come", "planned", "moved_in", "moved_out", "discharges")
"""Second axis of the draws, in order."""
KNOWN, IN_ED, TO_COME, PLANNED, MOVED_IN, MOVED_OUT, DISCHARGES = range(7)
NOTCHES: Final = 64
HOPS: Final = 2
"""Moves between specialties of one patient within the forecast; a third is left out, in draws and means alike."""


@dataclass(frozen=True, slots=True)
class Chances:
    """What may happen to whom, for n people, K lines (specialties) and S segments.

    All chances are per segment, not cumulated.

    Attributes
    ----------
    known_line, known : (n_known,), (n_known, S)
        Line of each person who waits for a bed, and P(bed in a segment).
    in_ed, in_ed_line : (n_ed, S), (n_ed, K)
        P(admitted and in a bed in a segment), and P(line given that).
    planned_line, planned : (n_listed,), (n_listed, S)
        The same of those on the elective list.
    in_bed_line, in_bed : (n_bed,), (n_bed, 2 S)
        Of inpatients: P(leaves in a segment), then P(moves in a segment).
    after : (K, S, 2 S)
        The same of somebody who reaches a bed of a line in a segment.
    destination : (K, K)
        P(line moved to); rows sum to 1.
    rate : (doors, days, K, S)
        Expected arrivals of a day through a door who reach a bed of a line in a segment.
    flow_of_door : (doors,)
        ``TO_COME`` or ``PLANNED``.
    """

    known_line: Ints
    known: Floats
    in_ed: Floats
    in_ed_line: Floats
    planned_line: Ints
    planned: Floats
    in_bed_line: Ints
    in_bed: Floats
    after: Floats
    destination: Floats
    rate: Floats
    flow_of_door: Ints


def draw(chances: Chances, factor: Floats, rng: np.random.Generator) -> Ints:
    """Possible futures.

    Parameters
    ----------
    factor : float64, shape (draws, doors, days)
        What all arrivals of a door and day share.

    Returns
    -------
    int64, shape (draws, flows, K, S)
    """
    c, (n_lines, n_segments) = chances, chances.after.shape[:2]
    expected = _expected(c, factor)
    out = np.zeros((len(factor), len(FLOWS), n_lines, n_segments), dtype=np.int64)
    after = _dial(c.after.reshape(n_lines * n_segments, -1))
    fates = (after, _dial(c.destination))
    _walk_in_bed(out, c.in_bed_line, _dial(c.in_bed), fates, rng)
    _walk_to_bed(out[:, KNOWN], c.known_line, _dial(c.known), rng)
    _walk_to_bed(out[:, PLANNED], c.planned_line, _dial(c.planned), rng)
    _walk_ed(out[:, IN_ED], _dial(c.in_ed), _dial(c.in_ed_line), rng)
    _arrive(out, expected, c.flow_of_door, rng)
    _walk_on(out, fates, rng)
    return out


def _expected(chances: Chances, factor: Floats) -> Floats:
    """Mean arrivals by draw, door, line and segment, given each day's factor."""
    doors = [f @ r.reshape(len(r), -1) for f, r in zip(factor.transpose(1, 0, 2), chances.rate, strict=True)]
    return np.stack(doors, axis=1).reshape(len(factor), *chances.rate[:, 0].shape)


def _dial(chances: Floats) -> Dial:
    """Cumulated chances, and for each of :data:`NOTCHES` parts of [0, 1) the first category it can mean."""
    cumulated = np.cumsum(chances, axis=1)
    notches = np.arange(NOTCHES) / NOTCHES
    first = (cumulated[:, None, :] <= notches[None, :, None]).sum(axis=2)
    return cumulated, first.astype(np.int32)


def means(chances: Chances, factor: Floats) -> Floats:
    """Exact expectations of :func:`draw`, shape (flows, K, S); ``factor`` is the expected one, shape (doors, days)."""
    n_lines, n_segments = chances.after.shape[:2]
    out = np.zeros((len(FLOWS), n_lines, n_segments))
    np.add.at(out[KNOWN], chances.known_line, chances.known)
    out[IN_ED] = chances.in_ed_line.T @ chances.in_ed
    arrivals = np.einsum("dt,dtks->dks", factor, chances.rate)
    np.add.at(out, chances.flow_of_door, arrivals)
    np.add.at(out[PLANNED], chances.planned_line, chances.planned)
    fate = np.zeros((n_lines, 2 * n_segments))
    np.add.at(fate, chances.in_bed_line, chances.in_bed)
    came = out[: PLANNED + 1].sum(axis=0)
    for hop in range(HOPS + 1):
        fate = fate + np.einsum("ka,kab->kb", came, chances.after)
        out[DISCHARGES] += fate[:, :n_segments]
        if hop < HOPS:
            out[MOVED_OUT] += fate[:, n_segments:]
            came = chances.destination.T @ fate[:, n_segments:]
            out[MOVED_IN] += came
        fate = np.zeros_like(fate)
    return out


@inlined
def _place(dial: Dial, row: int, u: float) -> int:
    """First category of a row whose cumulated chance is above ``u``; their number where none is."""
    cumulated, first = dial
    place = int(first[row, int(u * NOTCHES)])
    while place < cumulated.shape[1] and u >= cumulated[row, place]:
        place += 1
    return place


@inlined
def _follow(out: Ints, line: int, fate: int, fates: tuple[Dial, Dial], rng: np.random.Generator) -> None:
    """From what happens first to somebody in a bed (a category of ``in_bed``) to the end of the forecast."""
    after, destination = fates
    n_lines, n_segments = out.shape[1:]
    hops = 0
    while fate < 2 * n_segments:
        if fate < n_segments:
            out[DISCHARGES, line, fate] += 1
            return
        if hops == HOPS:
            return
        segment = fate - n_segments
        out[MOVED_OUT, line, segment] += 1
        line = min(_place(destination, line, rng.random()), n_lines - 1)
        out[MOVED_IN, line, segment] += 1
        hops += 1
        fate = _place(after, line * n_segments + segment, rng.random())


@compiled
def _walk_in_bed(
    out: Ints, line: Ints, first: Dial, fates: tuple[Dial, Dial], rng: np.random.Generator
) -> None:
    """Inpatients."""
    n_fates = first[0].shape[1]
    for d in range(out.shape[0]):
        for i in range(line.size):
            fate = _place(first, i, rng.random())
            if fate < n_fates:
                _follow(out[d], line[i], fate, fates, rng)


@compiled
def _walk_to_bed(out: Ints, line: Ints, reached: Dial, rng: np.random.Generator) -> None:
    """People whose line is known and who wait for a bed, or are expected."""
    n_segments = out.shape[2]
    for d in range(out.shape[0]):
        for i in range(line.size):
            segment = _place(reached, i, rng.random())
            if segment < n_segments:
                out[d, line[i], segment] += 1


@compiled
def _walk_ed(out: Ints, reached: Dial, line_of: Dial, rng: np.random.Generator) -> None:
    """The undecided: admitted and in a bed in which segment, if at all, and of which line."""
    n_lines, n_segments = out.shape[1:]
    for d in range(out.shape[0]):
        for i in range(reached[0].shape[0]):
            segment = _place(reached, i, rng.random())
            if segment < n_segments:
                line = min(_place(line_of, i, rng.random()), n_lines - 1)
                out[d, line, segment] += 1


@compiled
def _arrive(out: Ints, expected: Floats, flow_of_door: Ints, rng: np.random.Generator) -> None:
    """Who is still to come."""
    for d in range(out.shape[0]):
        for door in range(flow_of_door.size):
            for line in range(out.shape[2]):
                for segment in range(out.shape[3]):
                    if expected[d, door, line, segment] > 0:
                        came = rng.poisson(expected[d, door, line, segment])
                        out[d, flow_of_door[door], line, segment] += came


@compiled
def _walk_on(out: Ints, fates: tuple[Dial, Dial], rng: np.random.Generator) -> None:
    """What becomes of those who reach a bed within the forecast."""
    n_lines, n_segments = out.shape[2:]
    for d in range(out.shape[0]):
        one = out[d]
        for line in range(n_lines):
            for segment in range(n_segments):
                came = 0
                for flow in range(PLANNED + 1):
                    came += one[flow, line, segment]
                for _ in range(came):
                    fate = _place(fates[0], line * n_segments + segment, rng.random())
                    _follow(one, line, fate, fates, rng)
