"""The meeting: all ranks tell rank 0 that they are here, and who they are, before torch is imported.

Rank 0 listens where the process group will; once all have come it gives the word, and goes on listening to them until
every rank has joined the group. So whoever is missing, different, lost or told to stop meanwhile is known to all within
a second, and nobody waits in silence. Messages are JSON, a line each; what strangers send is data that is refused.
"""

from __future__ import annotations

from pretrain.meeting.member import Meeting, meet

__all__ = ["Meeting", "meet"]
