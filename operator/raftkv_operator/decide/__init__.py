"""The decision: a pure function from what is wished and what is seen to the one next thing to do."""

from raftkv_operator.decide.actions import Action, Decision, Rest, Stall, Wait
from raftkv_operator.decide.decide import decide

__all__ = ["Action", "Decision", "Rest", "Stall", "Wait", "decide"]
