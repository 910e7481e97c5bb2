-- What was told of a span of event time, for replays.
create index alert_events_observed on alert_events (observed_at);
