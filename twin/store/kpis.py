"""Figures about the alerts of a span of time, computed by the database from what was told.

What asks for an operator's attention is an alert that is raised, or becomes worse, and is not held back. Times are
those at which it was told, but for chatter, which is a matter of the measured thing, and how long alerts stand.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final, NamedTuple

from twin.model import DAY, SECOND, Micros
from twin.store.reader import Reader
from twin.store.rows import moment

BIN_S: Final = 600
CHATTER: Final = 3  # raised so often in a short time
STALE: Final[Micros] = DAY
LISTED: Final = 10

_SPAN: Final = "at >= %(start)s and at < %(end)s"
_CALLS: Final = f"{_SPAN} and transition in ('raised', 'escalated') and flags = '{{}}'"
# What late data put into the place of an earlier telling is one raise and not two.
_STANDS: Final = (
    "not exists (select 1 from alert_events w where w.alert_id = e.alert_id and w.transition = 'withdrawn'"
    " and w.replaces = e.id)"
)
_SUBJECT: Final = (
    "coalesce((select s.device || '/' || s.property from sensors s where s.id = {0}.sensor_id), {0}.asset)"
)


class Counted(NamedTuple):
    """Something counted: a rule, or a rule on a subject."""

    rule: str
    subject: str | None
    times: int


class Figures(NamedTuple):
    """`bins`: calls for attention by ten minutes since the epoch, those with any; `by_level`: by the level told.
    `chatter`: which rules raised `CHATTER` times within a short time, and how often so. `stale`: active at the end of
    the span for more than a day and not held back; `standing`: all that are active then. `acknowledged_s`: 50th and
    90th percentile, of `raised` that were not held back. `verdicts`: by rule, false alarms and confirmed ones."""

    bins: list[tuple[int, int]]
    by_level: dict[int, int]
    by_rule: list[Counted]
    chatter: list[Counted]
    chattering: int
    stale: list[Counted]
    stale_count: int
    standing: int
    acknowledged: int
    acknowledged_s: tuple[float | None, float | None]
    raised: int
    verdicts: list[tuple[str, int, int]]


async def figures(
    reader: Reader, start: Micros, end: Micros, chatter_within: Micros, held_flags: Collection[str]
) -> Figures:
    """All of them for [start, end). `held_flags`: those that keep an alert from being told."""
    given: dict[str, object] = {
        "start": moment(start), "end": moment(end), "within": chatter_within / SECOND, "times": CHATTER - 1,
        "stale": moment(end - STALE), "listed": LISTED,
    }  # fmt: skip
    bins = await reader.ask(
        f"select floor(extract(epoch from at) / {BIN_S})::bigint, count(*) from alert_events where {_CALLS}"
        " group by 1 order by 1",
        given,
    )
    by_level = await reader.ask(f"select level, count(*) from alert_events where {_CALLS} group by 1", given)
    by_rule = await reader.ask(
        f"select rule, count(*) from alert_events where {_CALLS} group by 1 order by 2 desc, 1 limit %(listed)s", given
    )
    chatter = await reader.ask(
        "select rule, subject, n, count(*) over () from (select rule, sensor_id, asset,"
        f" {_SUBJECT.format('r')} as subject, count(*) as n from (select rule, sensor_id, asset, observed_at,"
        " lag(observed_at, %(times)s) over (partition by rule, sensor_id, asset order by observed_at, seq) as before"
        f" from alert_events e where {_SPAN} and transition = 'raised' and {_STANDS}) r"
        " where observed_at - before <= make_interval(secs => %(within)s) group by rule, sensor_id, asset) c"
        " order by n desc, rule, subject limit %(listed)s",
        given,
    )
    stands = (
        "raised_at < %(end)s and (cleared_at is null and state <> 'cleared' or cleared_at >= %(end)s)"
        " and not 'withdrawn' = any(flags)"
    )
    held = (
        "coalesce((select k.flags from alert_events k where k.alert_id = a.id and k.at < %(end)s order by k.seq desc"
        " limit 1), a.flags) && %(held)s"
    )
    stale = await reader.ask(
        f"select rule, {_SUBJECT.format('a')}, floor(extract(epoch from %(end)s - raised_at) / 3600)::bigint,"
        f" count(*) over () from alerts a where {stands} and raised_at < %(stale)s and not {held}"
        " order by raised_at, id limit %(listed)s",
        given | {"held": sorted(held_flags)},
    )
    standing = await reader.ask(f"select count(*) from alerts where {stands}", given)
    acknowledged = await reader.ask(
        "select count(took), percentile_cont(0.5) within group (order by took),"
        " percentile_cont(0.9) within group (order by took), count(*) from (select extract(epoch from"
        " (select min(k.at) from alert_events k where k.alert_id = e.alert_id and k.transition = 'acknowledged'"
        " and k.seq > e.seq) - e.at)::float8 as took from (select distinct on (alert_id) alert_id, seq, at"
        f" from alert_events where {_SPAN} and transition = 'raised' and flags = '{{}}' order by alert_id, seq) e) t",
        given,
    )
    verdicts = await reader.ask(
        "select rule, count(*) filter (where transition = 'false_alarm'),"
        " count(*) filter (where transition = 'confirmed') from (select distinct on (alert_id) alert_id, rule,"
        f" transition from alert_events where {_SPAN} and transition in ('false_alarm', 'confirmed')"
        " order by alert_id, seq desc) v group by 1 order by 1",
        given,
    )
    count, middle, high, raised = acknowledged[0]
    return Figures(
        bins=[(int(bin_), n) for bin_, n in bins],
        by_level={int(level): n for level, n in by_level},
        by_rule=[Counted(rule, None, n) for rule, n in by_rule],
        chatter=[Counted(rule, subject, n) for rule, subject, n, _ in chatter],
        chattering=chatter[0][3] if chatter else 0,
        stale=[Counted(rule, subject, n) for rule, subject, n, _ in stale],
        stale_count=stale[0][3] if stale else 0,
        standing=standing[0][0],
        acknowledged=count,
        acknowledged_s=(middle, high),
        raised=raised,
        verdicts=[(rule, false, true) for rule, false, true in verdicts],
    )


def floods_in(bins: list[tuple[int, int]], most: float, few: float) -> list[dict[str, Any]]:
    """Runs of ten minutes that begin with one of more than `most` calls and end before one of fewer than `few`: first
    and last bin, how many calls, and the most in one."""
    found: list[dict[str, Any]] = []
    last: int | None = None
    for bin_, count in bins:
        if last is not None and bin_ == last + 1 and count >= few:
            run = found[-1]
            run["last"], run["alerts"], run["peak"] = bin_, run["alerts"] + count, max(run["peak"], count)
        elif count > most:
            found.append({"first": bin_, "last": bin_, "alerts": count, "peak": count})
        else:
            last = None
            continue
        last = bin_
    return found
