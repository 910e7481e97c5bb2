-- Incidents: alerts that belong together, as the desk left them. number: the order in which they began. body: as HTTP
-- shows it; the columns beside it are for looking it up.
create table incidents (
    id text primary key,
    number bigint not null unique,
    state text not null,
    opened_at timestamptz not null,
    closed_at timestamptz,
    level smallint not null,
    domains text[] not null,
    root text,
    first text,
    merged_into text,
    apart text[] not null default '{}',
    ended_by text,
    confirmed_by text,
    confirmed_at timestamptz,
    body jsonb not null
);
create index incidents_opened on incidents (opened_at, id);
create index incidents_open on incidents (number) where state = 'open';
create index incidents_root on incidents (root);
create index incidents_first on incidents (first);

-- Which incident an alert is in, and what grouping knows of it (alerts.incidents.Member).
create table incident_alerts (
    alert_id text primary key,
    incident text not null,
    raised_at timestamptz not null,
    facts jsonb not null
);
create index incident_alerts_incident on incident_alerts (incident);
create index incident_alerts_raised on incident_alerts (raised_at);

-- What happened to incidents. at: event time, or when people did it.
create table incident_entries (
    id bigint generated always as identity primary key,
    incident text not null,
    at timestamptz not null,
    told_at timestamptz not null default now(),
    what text not null,
    alert_id text,
    by text,
    note text,
    other text
);
create index incident_entries_incident on incident_entries (incident, id);

-- Times when more alerts came than the people on duty can take in.
create table floods (
    started_at timestamptz primary key,
    ended_at timestamptz,
    peak integer not null,
    alerts integer not null
);

-- What was told when, for figures over a span.
create index alert_events_at on alert_events using brin (at);
