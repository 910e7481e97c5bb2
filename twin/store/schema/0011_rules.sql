-- Why a rule set was put into force, beside who did it.
alter table rule_sets add note text;
