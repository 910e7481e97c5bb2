-- Who follows the alert events, and up to which one they are done; written in the transaction of what they did.
create table followers (
    name text primary key,
    epoch text not null,
    seq bigint not null
);
