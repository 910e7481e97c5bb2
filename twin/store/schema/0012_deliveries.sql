-- Deliveries are many and are kept for long: what is asked for is found without reading all of them.
create index deliveries_changed on deliveries using brin (changed_at);
create index deliveries_refresh on deliveries (receiver) where kind = 'refresh' and state <> 'lapsed';
create index deliveries_state on deliveries (state, number) where state <> 'sent';
create index deliveries_kind on deliveries (kind, number);
drop index deliveries_dead;
-- Each decision asks who was told of its alerts. What waits outside the index's tree would be read for each of them.
drop index deliveries_alerts;
create index deliveries_alerts on deliveries using gin (alerts) with (fastupdate = off);
