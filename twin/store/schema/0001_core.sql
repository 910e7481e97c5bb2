-- Who and what: tenants (权属单位), assets (设施), devices (设备), sensors (测点).

create table tenants (
    id text primary key,
    name_zh text,
    name_en text,
    created_at timestamptz not null default now()
);

-- An asset named by a sensor before any model describes it has no type yet.
create table assets (
    id text primary key,
    type text,
    tenant text not null references tenants,
    name_zh text,
    name_en text,
    lon float8,
    lat float8,
    created_at timestamptz not null default now()
);

create table devices (
    id text primary key,
    tenant text not null references tenants,
    is_online boolean,
    status_at timestamptz,
    created_at timestamptz not null default now()
);

-- Hardware that stands in for a device from a moment on; the device's sensors keep their ids and history.
create table replacements (
    hardware text primary key,
    device text not null references devices,
    since timestamptz not null,
    by text,
    created_at timestamptz not null default now()
);

-- id is dense (0, 1, 2, ...): the service uses it as an index into arrays. Sensors are never deleted.
create table sensors (
    id integer primary key,
    device text not null references devices,
    property text not null,
    tenant text not null references tenants,
    kind text not null,
    unit text not null,
    asset text references assets,
    lon float8,
    lat float8,
    interval_s float8,
    min float8,
    max float8,
    tags text[] not null default '{}',
    mode text not null default 'normal' check (mode in ('normal', 'test', 'calibration')),
    mode_reason text,
    statistic text,
    catalog_version integer not null default 0,
    created_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (device, property)
);

-- Written at checkpoints, for those who read the database directly; the service answers from memory.
create table latest (
    sensor_id integer primary key references sensors,
    observed_at timestamptz not null,
    received_at timestamptz not null,
    value float8,
    quality smallint not null,
    heard_at timestamptz not null
) with (fillfactor = 70);

-- What was refused, raw. One row per topic, payload and reason; readings = readings refused in all its deliveries.
create table quarantine (
    id bigint generated always as identity primary key,
    key bytea not null unique,
    topic text not null,
    payload bytea not null,
    size bigint not null,
    is_truncated boolean not null,
    reason text not null,
    detail text not null,
    tenant text,
    device text,
    positions integer[] not null,
    deliveries bigint not null,
    readings bigint not null,
    first_at timestamptz not null,
    last_at timestamptz not null
);

create table rule_sets (
    version integer primary key,
    text text not null,
    by text,
    created_at timestamptz not null default now()
);

create table alerts (
    id text primary key,
    rule text not null,
    rule_version integer not null,
    sensor_id integer references sensors,
    asset text,
    tenant text not null,
    domain text not null,
    level smallint not null,
    peak_level smallint not null,
    state text not null,
    flags text[] not null default '{}',
    since timestamptz not null,
    raised_at timestamptz not null,
    cleared_at timestamptz,
    value float8,
    peak_value float8,
    threshold float8,
    lon float8,
    lat float8,
    place text,
    message_zh text not null,
    message_en text not null,
    instruction_zh text not null,
    instruction_en text not null
);
create index alerts_open on alerts (raised_at) where state <> 'cleared';
create index alerts_raised on alerts (raised_at, id);

-- Every transition, in the order it was told. replaces names an event taken back by late data.
create table alert_events (
    seq bigint primary key,
    id text not null,
    alert_id text not null references alerts,
    rule text not null,
    rule_version integer not null,
    sensor_id integer references sensors,
    asset text,
    tenant text not null,
    domain text not null,
    level smallint not null,
    previous_level smallint not null,
    state text not null,
    transition text not null,
    value float8,
    threshold float8,
    observed_at timestamptz not null,
    at timestamptz not null,
    lon float8,
    lat float8,
    message_zh text not null,
    message_en text not null,
    is_retroactive boolean not null,
    replaces text,
    by text,
    note text
);
create index alert_events_alert on alert_events (alert_id, seq);
create index alert_events_sensor on alert_events (sensor_id, observed_at);

-- One row: what is committed. batch numbers every commit, seq the alert events; both are allotted under this row's
-- lock. token tells a writer whether a commit whose answer was lost took place. tail_from .. tail_to span the event
-- times stored since the last checkpoint.
create table service (
    is_only boolean primary key default true check (is_only),
    instance text not null,
    epoch text not null,
    batch bigint not null default 0,
    seq bigint not null default 0,
    token text not null default '',
    catalog_version integer not null default 0,
    rules_version integer not null default 0,
    aggregated_batch bigint not null default 0,
    tail_from timestamptz,
    tail_to timestamptz
);
insert into service (instance, epoch)
values (left(md5(gen_random_uuid()::text), 12), left(md5(gen_random_uuid()::text), 12));

create table counters (
    is_only boolean primary key default true check (is_only),
    messages_received bigint not null default 0,
    readings_received bigint not null default 0,
    readings_stored bigint not null default 0,
    readings_duplicate bigint not null default 0,
    readings_quarantined bigint not null default 0
);
insert into counters default values;

-- What the detectors remembered after a batch, so that a start judges the tail only.
create table checkpoints (
    batch bigint primary key,
    taken_at timestamptz not null,
    observed_at bytea not null,
    engine bytea not null
);

-- Commits that imported recorded readings: history that is kept but was never judged.
create table imports (
    batch bigint primary key,
    name text not null,
    readings bigint not null,
    at timestamptz not null default now()
);

-- Answers to POSTs that act, so that a repeated Idempotency-Key acts once.
create table idempotency (
    key text primary key,
    route text not null,
    status integer not null,
    answer jsonb not null,
    at timestamptz not null default now()
);
