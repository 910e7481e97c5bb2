-- Samples are float32, or, where decimals is set, int16 in units of 10^-decimals: what a converter of 16 bits gave.
alter table waveform_blocks add column decimals smallint;
