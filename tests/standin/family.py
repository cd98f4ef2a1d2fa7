# SPDX-License-Identifier: MIT
"""What one version of vLLM does otherwise than another, as far as the stand-in shows it.

Seen on real 0.11.0, 0.12.0, 0.16.0, 0.17.1, 0.20.2, 0.29.0 and 0.32.0. What is true of two of them is taken to be true
between them, and a change between two of them is taken to have come with the second, unless the source tells better.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Family:
    """The behaviour of one version."""

    release: tuple[int, ...]

    @classmethod
    def of(cls, version: str) -> Family:
        """Read a version: 0.32.0, 0.12.0.post2 and 0.32.0+cpu are three numbers each."""
        return cls(tuple(int(number) for number in re.findall(r"\d+", version)[:3]))

    @property
    def old(self) -> bool:
        """The scheduler can't be paused: no modes, a stream runs on while memory sleeps, and a request is taken."""
        return self.release < (0, 17)

    @property
    def pauses(self) -> bool:
        """There are /pause, /resume and /is_paused."""
        return self.release >= (0, 12)

    @property
    def holds_at_the_door(self) -> bool:
        """/pause is the API server's own: the engine knows nothing of it, nor of what is held by it."""
        return (0, 12) <= self.release < (0, 17)

    @property
    def locks_the_door(self) -> bool:
        """While a pause waits for what runs, /resume and /is_paused wait for that too."""
        return (0, 16) <= self.release < (0, 17)

    @property
    def pauses_by_its_old_name(self) -> bool:
        """/pause knows wait_for_inflight_requests; else it cuts what runs, as without a mode (seen on 0.32.0)."""
        return self.release < (0, 31)

    @property
    def pauses_only_in_dev_mode(self) -> bool:
        """/pause and /resume are not there without dev mode."""
        return self.release >= (0, 16)

    @property
    def wakes_the_scheduler_with_any_tag(self) -> bool:
        """What is held runs after the first tagged wake: before the weights are there again, or the KV cache is."""
        return (0, 17) <= self.release < (0, 24)

    @property
    def has_the_sleep_gauge(self) -> bool:
        """/metrics tells the sleep state."""
        return self.release >= (0, 11, 2)

    @property
    def gauge_knows_half_awake(self) -> bool:
        """The gauge says awake when all is, not after the first tagged wake."""
        return self.release >= (0, 31)

    @property
    def sleeps_from_half_awake(self) -> bool:
        """A sleep of what is half awake does something."""
        return self.release >= (0, 31)

    @property
    def times_the_sleep(self) -> bool:
        """/metrics tells how long sleeps and wakes took."""
        return self.release >= (0, 31)

    @property
    def says_what_it_did(self) -> bool:
        """JSON answers of /sleep and /wake_up, and a level that is looked at."""
        return self.release >= (0, 31)

    @property
    def explains_its_errors(self) -> bool:
        """A call to the engine that fails is answered with what went wrong; else with 500 and three words."""
        return self.release >= (0, 20)

    @property
    def status_of_a_level_in_words(self) -> int:
        """What C(level=abc) is answered with."""
        return 400 if self.release >= (0, 20) else 500

    @property
    def tells_whether_the_cache_was_reset(self) -> bool:
        """/reset_prefix_cache answers with JSON."""
        return self.release >= (0, 27)

    @property
    def fails_with_200(self) -> bool:
        """A completion during which the engine dies is answered with 200, and the error is in the body."""
        return (0, 16) <= self.release < (0, 17)

    @property
    def knows_every_call(self) -> bool:
        """What the model can't do is answered with 200, and the error is in the body; else there is no such call."""
        return self.release < (0, 16)

    @property
    def deaf_to_term_while_busy(self) -> bool:
        """SIGTERM does not end it while a request runs, for longer than anybody waits."""
        return self.release < (0, 13)
