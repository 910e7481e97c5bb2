-- What people did about an alert, and what holds it back. flags of an event: its alert's after the commit.
alter table alerts
    add column assignee text,
    add column verdict text check (verdict in ('confirmed', 'false_alarm')),
    add column suppressed_by text[] not null default '{}',
    add column shelved_until timestamptz;
alter table alert_events
    add column flags text[] not null default '{}',
    add column detail jsonb;

-- Shelves, points out of service, silences, maintenance windows, mute times, suppression by design. Never deleted: a row
-- tells who held back what, from when to when, and why. ends_at is null for what lasts until somebody ends it.
create table holds (
    id text primary key,
    kind text not null,
    matchers jsonb not null,
    times jsonb,
    starts_at timestamptz not null,
    ends_at timestamptz,
    by text,
    note text,
    created_at timestamptz not null,
    ended_at timestamptz,
    ended_by text,
    end_note text
);
create index holds_created on holds (created_at, id);
create index holds_standing on holds (ends_at) where ended_at is null;
-- Of one rule, the newest: chatter at start, and figures by rule.
create index alerts_rule on alerts (rule, raised_at);
