-- How alerts reach people: the plan in its versions, what is being told of, and every delivery.

-- text: without its secrets, which are apart, as [receiver, field, key or null, value].
create table notify_plans (
    version integer primary key,
    text text not null,
    secrets jsonb not null,
    by text,
    created_at timestamptz not null default now()
);

-- Alerts that are being told of: what was told, and what is due when. next_at is the earliest of the times.
create table notify_watched (
    alert text primary key,
    changed_at timestamptz,
    due_at timestamptz,
    told_level smallint not null,
    told_active boolean not null,
    told_at timestamptz,
    group_key text not null,
    stage smallint not null,
    escalate_at timestamptz,
    repeat_at timestamptz,
    next_at timestamptz
);
create index notify_watched_next on notify_watched (next_at) where next_at is not null;
create index notify_watched_pending on notify_watched (alert) where due_at is not null;
create index notify_watched_group on notify_watched (group_key);

create table notify_groups (
    key text primary key,
    told_at timestamptz not null,
    level smallint not null
);
create index notify_groups_told on notify_groups (told_at);

-- waiting: to be sent at next_at; held: kept back, and why; sent; dead: given up; lapsed: held until nobody needed it.
create table deliveries (
    number bigint generated always as identity primary key,
    id text not null unique,
    receiver text not null,
    kind text not null,
    level smallint not null,
    group_key text not null,
    incident text,
    alerts text[] not null,
    content jsonb not null,
    state text not null check (state in ('waiting', 'held', 'sent', 'dead', 'lapsed')),
    reason text,
    instead_of text,
    attempts integer not null default 0,
    last_error text,
    next_at timestamptz,
    created_at timestamptz not null,
    changed_at timestamptz not null,
    sent_at timestamptz
);
create index deliveries_alerts on deliveries using gin (alerts);
create index deliveries_waiting on deliveries (receiver, group_key, number) where state = 'waiting';
create index deliveries_held on deliveries (receiver) where state = 'held';
create index deliveries_dead on deliveries (number) where state = 'dead';
create index deliveries_receiver on deliveries (receiver, number);
