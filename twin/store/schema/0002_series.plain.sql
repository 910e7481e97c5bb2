-- Time series on plain PostgreSQL: a partition a day, made ahead and as needed by the service.

create table readings (
    sensor_id integer not null,
    observed_at timestamptz not null,
    received_at timestamptz not null,
    value float8,
    quality smallint not null,
    batch bigint not null,
    primary key (sensor_id, observed_at)
) partition by range (observed_at);
-- A block-range index: next to nothing to keep, and enough to find the tail after a checkpoint.
create index readings_batch on readings using brin (batch) with (pages_per_range = 32);

create table waveform_blocks (
    sensor_id integer not null,
    started_at timestamptz not null,
    received_at timestamptz not null,
    rate_hz float8 not null,
    samples bytea not null,
    quality smallint not null,
    batch bigint not null,
    primary key (sensor_id, started_at)
) partition by range (started_at);

create table readings_1m (
    sensor_id integer not null,
    bucket timestamptz not null,
    min float8 not null,
    max float8 not null,
    sum float8 not null,
    count bigint not null,
    last float8 not null,
    last_at timestamptz not null,
    primary key (sensor_id, bucket)
);
create table readings_1h (like readings_1m including all);
create table readings_1d (like readings_1m including all);
