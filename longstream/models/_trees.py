"""A `State` as what torch.export can return: its tensors, and the fingerprint as a constant."""

from longstream.models.state import State
from longstream.ops._trees import register_fields

register_fields(State, ("layers", "position"), "fingerprint")
