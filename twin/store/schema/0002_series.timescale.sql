-- Time series with the timescaledb extension: hypertables, a columnstore after a day, continuous aggregates.

create table readings (
    sensor_id integer not null,
    observed_at timestamptz not null,
    received_at timestamptz not null,
    value float8,
    quality smallint not null,
    batch bigint not null,
    primary key (sensor_id, observed_at)
);
select create_hypertable('readings', by_range('observed_at', interval '1 day'), create_default_indexes => false);
create index readings_batch on readings using brin (batch) with (pages_per_range = 32);
alter table readings set (
    timescaledb.enable_columnstore,
    timescaledb.segmentby = 'sensor_id',
    timescaledb.orderby = 'observed_at'
);
-- Newer versions can skip compressed batches by commit number; older ones do without.
do $$
begin
    alter table readings set (timescaledb.sparse_index = 'minmax(batch)');
exception when others then
    null;
end
$$;
call add_columnstore_policy('readings', after => interval '1 day');

create table waveform_blocks (
    sensor_id integer not null,
    started_at timestamptz not null,
    received_at timestamptz not null,
    rate_hz float8 not null,
    samples bytea not null,
    quality smallint not null,
    batch bigint not null,
    primary key (sensor_id, started_at)
);
select create_hypertable('waveform_blocks', by_range('started_at', interval '1 day'), create_default_indexes => false);

create materialized view readings_1m with (timescaledb.continuous, timescaledb.materialized_only = true) as
select
    sensor_id,
    time_bucket(interval '1 minute', observed_at) as bucket,
    min(value) as min,
    max(value) as max,
    sum(value) as sum,
    count(value) as count,
    last(value, observed_at) as last,
    max(observed_at) as last_at
from readings
where value is not null and quality < 16
group by 1, 2
with no data;

create materialized view readings_1h with (timescaledb.continuous, timescaledb.materialized_only = true) as
select
    sensor_id,
    time_bucket(interval '1 hour', bucket) as bucket,
    min(min) as min,
    max(max) as max,
    sum(sum) as sum,
    sum(count)::bigint as count,
    last(last, last_at) as last,
    max(last_at) as last_at
from readings_1m
group by 1, 2
with no data;

create materialized view readings_1d with (timescaledb.continuous, timescaledb.materialized_only = true) as
select
    sensor_id,
    time_bucket(interval '1 day', bucket) as bucket,
    min(min) as min,
    max(max) as max,
    sum(sum) as sum,
    sum(count)::bigint as count,
    last(last, last_at) as last,
    max(last_at) as last_at
from readings_1h
group by 1, 2
with no data;
