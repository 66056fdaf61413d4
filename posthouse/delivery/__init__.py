"""Delivery: brings what was accepted to its servers.

Each server has a lane: a bounded queue in memory, connections that are kept, and the reason why it is held, if it is.
What submission has just committed comes in already leased; what waits in the store is claimed in batches, by server,
when a lane has room. A worker per connection takes messages one after the other; the outcome of each recipient goes
through `model/policy.py` and is recorded with the next commit. A lane in trouble holds up no other.

Leases last 30 s and are renewed for all messages in hand by one batched heartbeat; an outcome is written with the number
of its lease, so that what another node took over meanwhile is not overwritten. A node that cannot write, or that has
lost contact to its database for 5 s, starts nothing.
"""

from posthouse.delivery.job import Counters, Delivery, Reports
from posthouse.delivery.lanes import LEASE_S, Job, Lane

__all__ = ["LEASE_S", "Counters", "Delivery", "Job", "Lane", "Reports"]
