-- What an import changed, of each sensor: so that a service takes in millions of readings by a row a sensor. Kept until
-- the next checkpoint, whose state has them.
create table import_spans (
    batch bigint not null,
    sensor_id integer not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    primary key (batch, sensor_id)
);
