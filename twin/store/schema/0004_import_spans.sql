-- What an import changed, of each sensor: so that a service takes in millions of readings by a row a sensor. Kept until
-- the next checkpoint, whose state has them.
create table import_spans (
    batch bigint not null,
    sensor_id integer not null,
    first_at timestamptz not null,
    last_at timestamptz not null,
    primary key (batch, sensor_id)
);

-- Of imports after the last checkpoint the service knows only from here.
do $$ begin
    if exists (select from imports where batch > coalesce((select max(batch) from checkpoints), 0)) then
        insert into import_spans
        select r.batch, r.sensor_id, min(r.observed_at), max(r.observed_at) from readings r
        join imports i on i.batch = r.batch
        where i.batch > coalesce((select max(batch) from checkpoints), 0)
        group by r.batch, r.sensor_id;
    end if;
end $$;
