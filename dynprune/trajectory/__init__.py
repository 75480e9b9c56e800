"""What a run did: times, states, the snapshot store."""

from dynprune.trajectory._trajectory import Trajectory

__all__ = ["Trajectory"]
