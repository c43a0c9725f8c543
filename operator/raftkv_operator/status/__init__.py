"""What the operator says: conditions, the members' list, one sentence, Events on transitions."""
