"""The rule set: as TOML or JSON, its versions and what differs between them, what it comes to on a sensor, and its
replacement as a whole, tried on stored readings before if wished."""

from __future__ import annotations

from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from alerts.engine import effective_on, fitted
from alerts.rule_diff import difference
from alerts.rules import Override, Rule, RuleSet, parse_duration, parse_rules, parse_rules_json, to_toml
from alerts.scopes import Fitted, Lack
from twin.api.errors import Invalid, done
from twin.api.parameters import (
    JSON,
    TOML,
    After,
    IfMatch,
    Limit,
    Text,
    accepted,
    cursor,
    example,
    is_json_body,
    json_answer,
    page,
    parse_cursor,
    text_field,
    version_named,
)
from twin.api.view import RulesView, ServiceView
from twin.api.waiting import answered
from twin.backtests import Asked
from twin.model import LEVELS, InvalidRules, NotFound, Refused, iso
from twin.store.reader import RuleSetRow

EXAMPLE: Final[dict[str, Any]] = {
    "id": "road-ponding", "title": {"zh": "道路积水", "en": "Road ponding"}, "kind": "drainage.ponding_depth",
    "detector": "threshold", "side": "above", "levels": {"blue": 10, "yellow": 15, "orange": 25, "red": 40},
    "hold": "5min", "clear": {"margin": "10%", "hold": "5min"},
}  # fmt: skip
_VERSION: Final[dict[str, Any]] = {
    "version": 3, "at": "2026-07-01T08:00:00Z", "by": "li.wei", "note": "雨季 rain season", "characters": 24312,
    "in_force": True,
}  # fmt: skip
_DIFF: Final[dict[str, Any]] = {
    "from": 2, "to": 3, "added": [], "removed": ["gas-stuck"],
    "changed": [{"rule": "road-ponding", "fields": {"hold": {"before": "5min", "after": "3min"}}}],
    "overrides": {"added": [], "removed": []}, "inhibits": {"added": [], "removed": []},
    "tests": {"added": [], "removed": []},
    "text": "--- version 2\n+++ version 3\n",
}  # fmt: skip
_LACK: Final[dict[str, Any]] = {
    "rule": "well-full", "sensor": "well-7/level", "asset": "管网:W7", "watched": False, "missing": ["levels.red"],
    "attributes": ["ground_m", "invert_m"], "why": "",
}  # fmt: skip
_EFFECTIVE: Final[dict[str, Any]] = {
    "id": "road-ponding", "title": {"zh": "道路积水", "en": "Road ponding"}, "detector": "threshold", "tags": [],
    "watched": True, "why": None,
    "rule": {**EXAMPLE, "hold": "2min"},
    "from": {
        "levels": {"rule": "road-ponding"},
        "hold": {"override": "override 1, line 40", "scope": {"area": ["福田区"]}},
    },
}  # fmt: skip
_TOML_EXAMPLE: Final = (
    '[[rule]]\nid = "road-ponding"\nkind = "drainage.ponding_depth"\ndetector = "threshold"\n'
    "levels = { blue = 10, yellow = 15, orange = 25, red = 40 }\n"
)
_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            TOML: {"schema": {"type": "string"}, "example": _TOML_EXAMPLE},
            JSON: {"schema": {"type": "object"}, "example": {"rule": [EXAMPLE]}},
        },
    }
}


def router(service: ServiceView) -> APIRouter:
    routes = APIRouter(tags=["规则 rules"])

    async def text_of(version: int) -> str:
        text = await service.reader.rules_text(version)
        if text is None:
            raise NotFound(f"no rule set of version {version} / 没有版本 {version} 的规则集")
        return text

    async def of_version(version: int | None) -> tuple[int, RulesView]:
        if version is None or version == service.rules_version:
            return service.rules_version, service.rules
        text = await text_of(version)
        try:
            return version, parse_rules(text, service.kinds)
        except Refused:
            return version, RuleSet((), text, {})  # it is of a time when other kinds were known: as text only

    @routes.get(
        "/rules",
        summary="现行规则集 / The rule set in force",
        responses={
            200: {
                "description": "OK",
                "content": {
                    JSON: {"example": {"version": 3, "rule": [EXAMPLE], "items": [EXAMPLE], "next": None}},
                    TOML: {"example": _TOML_EXAMPLE},
                },
            }
        },
    )
    async def get_rules(
        request: Request,
        version: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="以前的版本 / an earlier one")] = None,
    ) -> Response:
        media = accepted(request, (JSON, TOML))
        number, rules = await of_version(version)
        headers = {"ETag": f'"{number}"', "X-Rules-Version": str(number)}
        if media == TOML:
            return Response(rules.text, headers=headers, media_type=f"{TOML}; charset=utf-8")
        tables = rules.as_json()
        # `rule` as in the file, so that the answer can be PUT back; `items` as in every list.
        return json_answer({"version": number, **tables, "items": tables["rule"], "next": None}, headers=headers)

    @routes.put(
        "/rules",
        summary="替换整个规则集 / Replace the whole rule set",
        description="包括默认规则包。整体接受或整体拒绝，列出全部错误；相同的规则保留其状态，被删规则的报警关闭。"
        "空规则集须写明 `rule = []`。`dry_run=7d`：不生效，只回答与现行规则的差异以及近 7 天的回测结果。"
        "带 `If-Match`（GET 的 `ETag`）时，现行版本若已变则以 412 拒绝。 / "
        "The default pack included; all or nothing; equal rules keep their state. An empty set is said by `rule = []`. "
        "`dry_run=7d` puts nothing into force: it answers what differs from the rules in force, and what the rules "
        "would have given in the last seven days. With `If-Match`, the `ETag` of GET, it answers 412 where another "
        "version is in force by now.",
        responses=example({"version": 4})
        | {
            412: {"description": "现行版本已不是 If-Match 所述 / the version in force is not that of If-Match"},
            415: {"description": "既非 TOML 也非 JSON / neither TOML nor JSON"},
            422: {"description": "有误 / mistakes, all listed"},
        },
        openapi_extra=_BODY,
    )
    async def put_rules(
        request: Request,
        by: Annotated[str | None, Query(max_length=200, description="谁 / who")] = None,
        note: Annotated[str | None, Query(max_length=2000, description="缘由 / why")] = None,
        dry_run: Annotated[
            str | None, Query(max_length=64, description="回测多久 / over the last", examples=["7d"])
        ] = None,
        if_match: IfMatch = None,
    ) -> Response:
        data = await request.body()
        instead_of = version_named(if_match)
        is_json = is_json_body(request, data)
        if not data.strip():
            raise Invalid(
                "", "the body is empty; an empty rule set is rule = []", "请求体为空；空规则集应写为 rule = []"
            )
        if is_json:
            rules = await run_in_threadpool(_from_json, data, service)
        else:
            rules = await run_in_threadpool(parse_rules, data, service.kinds)
        more: dict[str, Any] = {}
        if rules.overrides:
            on_sensors = await run_in_threadpool(fitted, rules, service.catalog)
            if on_sensors.problems:
                raise InvalidRules(on_sensors.problems)
            if idle := _without_sensors(rules, on_sensors, service.rules.attributes is not None):
                more["overrides_without_sensors"] = idle
        who, why = text_field({"by": by}, "by"), text_field({"note": note}, "note", 2000)
        if dry_run is None:
            version = await done(service.commands.put_rules(rules.text, who, why, instead_of))
            return json_answer({"version": version, **more})
        span = _span(dry_run)
        end = service.clock()
        run = await run_in_threadpool(service.backtests.start, Asked(rules.text, end - span, end))
        number, before = service.rules_version, service.rules.text
        found = await answered(request, run)
        changes = await run_in_threadpool(difference, before, rules.text, (f"version {number}", "dry run"))
        return json_answer({"dry_run": True, "version": number, "diff": changes, "backtest": found, **more})

    @routes.get(
        "/rules/versions",
        summary="规则集的各个版本，新的在前 / Versions of the rule set, newest first",
        responses=example({"items": [_VERSION], "next": None}),
    )
    async def versions(limit: Limit = 100, after: After = None) -> Response:
        before = parse_cursor("rule-versions", after, int)
        found = await service.reader.rule_sets(limit + 1, None if before is None else before[0])
        following = cursor("rule-versions", found[limit - 1].version) if len(found) > limit else None
        return page([_version(row, service) for row in found[:limit]], following)

    @routes.get(
        "/rules/versions/{version}",
        summary="一个版本 / One version",
        description="回退：把旧版本的文本再次 PUT。 / To go back, PUT the text of an earlier version.",
        responses=example(_VERSION | {"rule": [EXAMPLE]}) | {404: {"description": "没有该版本 / no such version"}},
    )
    async def one_version(version: int, request: Request) -> Response:
        media = accepted(request, (JSON, TOML))
        found = await service.reader.rule_sets(1, min(max(version, 0), 2**31 - 2) + 1)
        if not found or found[0].version != version:
            raise NotFound(f"no rule set of version {version} / 没有版本 {version} 的规则集")
        headers = {"ETag": f'"{version}"', "X-Rules-Version": str(version)}
        _, rules = await of_version(version)
        if media == TOML:
            return Response(rules.text, headers=headers, media_type=f"{TOML}; charset=utf-8")
        return json_answer({**_version(found[0], service), **rules.as_json(), "text": rules.text}, headers=headers)

    @routes.get(
        "/rules/diff",
        summary="两个版本的差异 / What differs between two versions",
        description="默认为现行版本与其前一版本。 / By default the version in force and the one before.",
        responses=example(_DIFF) | {404: {"description": "没有该版本 / no such version"}},
    )
    async def diff(
        from_: Annotated[int | None, Query(alias="from", ge=1, le=2**31 - 1, examples=[2])] = None,
        to: Annotated[int | None, Query(ge=1, le=2**31 - 1, examples=[3])] = None,
    ) -> Response:
        new = service.rules_version if to is None else to
        old = max(1, new - 1) if from_ is None else from_
        before, after = await text_of(old), await text_of(new)
        found = await run_in_threadpool(difference, before, after, (f"version {old}", f"version {new}"))
        return json_answer({"from": old, "to": new, **found})

    @routes.get(
        "/rules/without-limit",
        summary="因设施缺少属性而没有限值、或不在管网中的测点 / Sensors for which a rule finds no limit, or no network",
        description="`watched` 为假：该规则不监视该测点；为真：只缺部分级别。"
        "`missing` 为 `along`：设施不在任何管网中，见 `why`。 / "
        "`watched` false: the rule does not watch the sensor; true: only some of its levels are not there. Where "
        "`missing` is `along`, its asset is in no network, as `why` says.",
        responses=example({"items": [_LACK], "next": None, "total": 1}),
    )
    async def without_limit(rule: Text = None, limit: Limit = 100, after: After = None) -> Response:
        rules, lacking = service.fitted.by_id, service.fitted.lacking
        names = list(rules)
        if rule is not None:
            if rule not in rules:
                raise NotFound(f"no rule {rule} / 没有规则 {rule}")
            lacking = [lack for lack in lacking if names[lack.rule] == rule]
        start = (parse_cursor("without-limit", after, int) or (0,))[0]
        items = [_lack(service, rules[names[lack.rule]], lack) for lack in lacking[start : start + limit]]
        more = start + limit < len(lacking)
        return page(items, cursor("without-limit", start + limit) if more else None, total=len(lacking))

    @routes.get(
        "/sensors/{device}/{property}/rules",
        summary="一个测点上的规则，及各值的来源 / The rules on a sensor, and where each value comes from",
        description="`rule` 为合并覆盖、代入设施属性后的规则；`from` 说明每个字段取自规则、覆盖或设施属性。 / "
        "`rule` is the rule with overrides and the asset's limits worked in; `from` says of each field whether it is "
        "the rule's own, an override's, or an attribute's of the asset.",
        responses=example({"items": [_EFFECTIVE], "next": None})
        | {404: {"description": "没有该测点 / no such sensor"}},
    )
    async def on_sensor(device: str, property: str) -> Response:
        index = service.catalog.find(f"{device}/{property}")
        return page(await run_in_threadpool(_on_sensor, service, index), None)

    @routes.get(
        "/rules/{id}",
        summary="一条规则 / One rule",
        responses=example(EXAMPLE | {"version": 3}) | {404: {"description": "没有该规则 / no such rule"}},
    )
    async def one_rule(id: str, request: Request) -> Response:
        media = accepted(request, (JSON, TOML))
        rules, version = service.rules, service.rules_version
        for rule in rules.rules:
            if rule.id == id:
                if media == TOML:
                    text = to_toml(RuleSet((rule,), "", {rule.id: rule}))
                    return Response(text, media_type=f"{TOML}; charset=utf-8")
                return json_answer(dict(rule.raw) | {"version": version})
        raise NotFound(f"no rule {id} / 没有规则 {id}")

    return routes


def _from_json(data: bytes, service: ServiceView) -> RuleSet:
    """Rules of a JSON body. What `GET /rules` adds to the file's form may stay in it."""
    try:
        given = orjson.loads(data)
    except orjson.JSONDecodeError:
        return parse_rules_json(data, service.kinds)  # says where it is wrong
    if isinstance(given, dict) and given.keys() & _ADDED and "rule" in given:
        data = orjson.dumps({key: value for key, value in given.items() if key not in _ADDED})
    return parse_rules_json(data, service.kinds)


_ADDED: Final = frozenset(("version", "at", "by", "note", "characters", "in_force", "text", "items", "next"))


def rules_given(given: str | dict[str, Any] | list[dict[str, Any]], service: ServiceView) -> RuleSet:
    """Rules that are part of a JSON body: TOML, the file's form in JSON, a list of rules, or one."""
    if isinstance(given, str):
        return parse_rules(given.encode(), service.kinds)
    if isinstance(given, list):
        given = {"rule": given}
    elif "rule" not in given:
        given = {"rule": [given]}
    return _from_json(orjson.dumps(given), service)


def _without_sensors(rules: RuleSet, found: Fitted, knows_areas: bool) -> list[str]:
    """The places of overrides in whose scope there is no sensor that their rule looks at: more likely a slip of the pen
    than a sensor that is still to come. Of areas nothing is said where they are not known."""
    used = {override.place for _, chain, _ in found.chains for override in chain}
    return [
        override.place
        for override in rules.overrides
        if override.place not in used
        and (rules.by_id[override.rule].enabled or override.fields.get("enabled") is True)
        and (knows_areas or not {"area", "asset"} & dict(override.scope).keys())
    ]


def _span(text: str) -> int:
    try:
        span = parse_duration(text)
    except ValueError as error:
        raise Invalid("dry_run", str(error), "必须是时长，如 7d") from None
    if span <= 0:
        raise Invalid("dry_run", "must be longer than 0", "必须大于 0")
    return span


def _version(row: RuleSetRow, service: ServiceView) -> dict[str, Any]:
    return {
        "version": row.version,
        "at": iso(row.created_at),
        "by": row.by,
        "note": row.note,
        "characters": row.size,
        "in_force": row.version == service.rules_version,
    }


def _lack(service: ServiceView, rule: Rule, lack: Lack) -> dict[str, Any]:
    sensor = service.catalog.sensors[lack.sensor]
    named = dict(rule.from_model)
    attributes = {name for field in lack.missing if field in named for name in named[field].attributes}
    return {
        "rule": rule.id,
        "sensor": sensor.id,
        "asset": sensor.asset,
        "watched": lack.is_watched,
        "missing": list(lack.missing),
        "attributes": sorted(attributes),
        "why": lack.why,
    }


def _on_sensor(service: ServiceView, index: int) -> list[dict[str, Any]]:
    rules, catalog = service.rules, service.catalog
    watching = {rule.id: rule for rule in service.rules_on(index)}
    alone = effective_on(rules, catalog, index)
    off = {place for place, sensors in alone.off if len(sensors)}
    lacks = {lack.rule: lack for lack in service.fitted.lacking if lack.sensor == index}
    lacks |= {lack.rule: lack for lack in alone.lacking}
    chains = {place: chain for place, chain, sensors in alone.chains if len(sensors)}
    result = []
    for place, rule in enumerate(rules.rules):
        found = watching.get(rule.id)
        if found is None and place not in off and place not in lacks:
            continue
        lack = lacks.get(place)
        why = "" if lack is None else lack.why or f"no limit: {', '.join(lack.missing)} / 设施未给出限值"
        table, origin = _origin(service, rule, found, chains.get(place, ()), index)
        result.append(
            {
                "id": rule.id,
                "title": {"zh": rule.title.zh, "en": rule.title.en},
                "detector": rule.detector,
                "tags": list(rule.tags),
                "watched": found is not None,
                "why": "switched off by an override / 被覆盖关闭" if place in off else why or None,
                "rule": table,
                "from": origin,
            }
        )
    return result


def _origin(
    service: ServiceView, rule: Rule, found: Rule | None, chain: tuple[Override, ...], index: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The table of a rule as it is on a sensor, and where each of its fields comes from."""
    table, origin = dict(rule.raw), dict[str, Any]()
    for name in table.keys() - _NAMES:
        origin[name] = {"rule": rule.id}
    for override in chain:
        for name, value in override.fields.items():
            table[name] = value
            origin[name] = {"override": override.place, "scope": {name: list(words) for name, words in override.scope}}
    facts = service.catalog.facts.get(index)
    for name in ("levels", "min", "max"):
        given = table.get(name)
        parts = given.items() if name == "levels" and isinstance(given, dict) else [("", given)]
        for level, limit in list(parts):
            if not isinstance(limit, dict):
                continue
            names = [limit[key] for key in ("of", "minus") if key in limit]
            numbers = {key: None if facts is None else facts.numbers.get(key) for key in names}
            has_all = all(number is not None for number in numbers.values())
            origin[f"{name}.{level}" if level else name] = {
                **origin[name],
                "asset": None if facts is None else facts.id,
                "attributes": numbers,
                "value": "model" if has_all else "default" if "default" in limit else "missing",
            }
    if found is not None:
        if "levels" in table:
            table["levels"] = {w: limit for w, limit in zip(LEVELS, found.levels, strict=True) if limit == limit}
        for name, bound in (("min", found.min), ("max", found.max)):
            if name in table:
                table[name] = bound
    return table, origin


_NAMES: Final = frozenset({"id", "title", "kind", "sensors", "where", "detector", "instruction", "tags"})
