"""The questions a pipe network answers: where water comes from and goes to, what to close, what is near, what is in the
way. Pure: columns in (`twin.city.Network`), frozen columns out; places in them are numbers of nodes and edges."""
