"""How alerts reach people: who is to be told what and when, and in which form each channel wants it. Decisions and
formats only; `twin.notifying` keeps the record and `twin.sending` does the sending."""
