"""The log in plain dictionaries, and what each reader must have been given: for test_log_property.

Nothing here calls the product. The test tells the model what it did, and shows it the tables after each step;
the model says whether the tables may have become so, and whether an answer is one that the reader may get.

A *life* is one history of the log. A restored backup begins another one, which shares its beginning with the
one that was there when the backup was made. A reader stands at a place in a life: what follows there, up to
the cursor of an answer, must be in that answer, all of it and nothing else. So nobody skips, and nobody gets
an event twice.

What was lost (deleted by hand, or trimmed) stays in the model's life: who has not had it gets it from the
memory of a worker, or is told 410. What was erased is passed in silence. The cursor behind a position whose
row is lost is *vague*: nothing is there to check it by, so 410 is always a right answer to it.
"""

from __future__ import annotations

from datetime import datetime, timedelta

OURS = "$"
#: By how much a trim may be early, seconds: two clocks of one moment are never quite the same.
CLOCK_SLACK = 1.0


class Violation(AssertionError):
    """The log broke its promise; or the model is wrong."""


class Row:
    """A committed row of the outbox."""

    def __init__(self, key, event_id=None, channel="", group=None, number=0, fit=True):
        self.key = key
        self.event_id = event_id
        self.channel = channel
        #: Its transaction, if its order is promised, and its number in there.
        self.group = group
        self.number = number
        self.fit = fit


class Entry:
    """An event at its position; one object in all lives that share it."""

    def __init__(self, position, key, event_id, channel, since):
        self.position = position
        self.key = key
        self.id = event_id
        self.channel = channel
        #: When it entered the log, by the true time.
        self.since = since

    def __repr__(self):
        return "%.9s at %d, id %s, channel %s" % (self.key, self.position, self.id, self.channel)


class Life:
    """One history of the log."""

    def __init__(self, log_id, head=0, oldest=1):
        self.log_id = log_id
        self.head = head
        self.oldest = oldest
        #: Position -> Entry, lost ones too.
        self.entries = {}
        #: Positions whose rows are in the table, and what these say of their time.
        self.present = set()
        self.times = {}
        #: Position -> the step that erased it.
        self.erased = {}
        #: Positions that a worker may remember as erased though a backup brought them back.
        self.doubtful = set()
        #: Transaction -> number of its last row in the log.
        self.last = {}

    def copy(self):
        other = Life(self.log_id, self.head, self.oldest)
        for name in ("entries", "present", "times", "erased", "doubtful", "last"):
            setattr(other, name, getattr(self, name).copy())
        return other

    def holds(self, position):
        """Whether the database can still give the event there."""
        return position in self.present and position >= self.oldest

    def known_ids(self):
        return {
            self.entries[each].id
            for each in self.present
            if self.oldest <= each <= self.head and each not in self.erased
        }


class Reader:
    """Where one reader stands; the cursor itself is the test's."""

    def __init__(self, name, channels):
        self.name = name
        self.channels = channels
        self.life_id = None
        #: None while it has no cursor.
        self.place = None
        self.anchor = None
        self.vague = False
        #: The life in which its wait began.
        self.waits_since = None
        self.given = set()

    def wants(self, channel):
        return not channel.startswith(OURS) and (self.channels is None or channel in self.channels)

    def stand(self, life, place):
        self.life_id = life.log_id
        self.place = place
        self.anchor = life.entries.get(place)
        self.vague = place > 0 and place not in life.present


class Memory:
    """What one worker may remember: the life that it last saw, and the step when it had seen everything."""

    def __init__(self, life):
        self.life = life
        self.settled = 0


class Model:
    """
    Args:
        tables: What the tables hold at the beginning: an empty log.
        retention_seconds: 0 keeps events of any age.
        retention_events: 0 keeps any number.
    """

    def __init__(self, tables, retention_seconds, retention_events):
        self.life = Life(tables.log_id)
        self.outbox = {}
        self.aside = set()
        self.step = 0
        self._seconds = retention_seconds
        self._events = retention_events

    # What happened to the tables.

    def commit(self, rows):
        self.outbox.update((row.key, row) for row in rows)

    def delete(self, positions):
        self.life.present -= set(positions)

    def erase(self, ids, first, last, channels):
        """All that fits; returns whether it was anything in the log."""
        life, found = self.life, []
        for row in list(self.outbox.values()):
            if row.event_id in ids or row.channel in channels:
                del self.outbox[row.key]
        for position in life.present:
            entry = life.entries[position]
            if entry.channel.startswith(OURS) or position in life.erased:
                continue
            if entry.id in ids or entry.channel in channels or first <= position <= last:
                found.append(position)
        life.erased.update((each, self.step) for each in found)
        return found

    def snapshot(self):
        return self.life.copy(), dict(self.outbox), set(self.aside)

    def restore(self, snapshot):
        """All tables."""
        life, outbox, aside = snapshot
        before, self.life = self.life, life.copy()
        self.outbox, self.aside = dict(outbox), set(aside)
        # A worker may have read them before they were erased, in the life that ends here.
        self.life.erased = dict.fromkeys(life.erased, self.step)
        self.life.doubtful |= {each for each in before.erased if each not in life.erased}

    def restore_events(self, snapshot):
        """The events alone; returns whether some are beyond the head now."""
        there, before = snapshot[0], self.life
        life = self.life = before.copy()
        life.present = set(there.present)
        for position in there.present:
            life.entries[position] = there.entries[position]
        life.times = dict(there.times)
        life.doubtful |= set(before.erased) | set(there.erased)
        life.erased = {each: at for each, at in before.erased.items() if each not in there.present}
        life.erased.update(dict.fromkeys(there.erased, self.step))
        return bool(life.present) and max(life.present) > life.head

    def begin_log(self, tables):
        """Another identity, and bounds that fit the events again."""
        last = max(self.life.present, default=0)
        life = self.life = self.life.copy()
        if tables.log_id == life.log_id:
            raise Violation("the log that was repaired has the identity that it had")
        if tables.head < last:
            raise Violation("the log was made to end at %d, and has %d" % (tables.head, last))
        sight = {each for each in life.present if each >= life.oldest}
        if sight and tables.oldest > min(sight):
            raise Violation("the log was made to begin at %d, and has %d" % (tables.oldest, min(sight)))
        life.log_id, life.head, life.oldest = tables.log_id, tables.head, tables.oldest
        life.entries = {each: entry for each, entry in life.entries.items() if each <= tables.head}

    # What the tables say.

    def look(self, tables, now, time_text):
        """Compares with the tables after a step that may publish, move and trim.

        Args:
            tables: What they hold.
            now: The true time, seconds.
            time_text: What an event that was trimmed at once had for its time.
        """
        life, known = self.life, self.life.known_ids()
        self._take_new(tables, now, time_text)
        self._take_outbox(tables, known)
        gone = life.present - set(tables.events)
        if tables.log_id is not None:
            if tables.log_id != life.log_id:
                raise Violation("the log has another identity")
            if tables.oldest < life.oldest:
                raise Violation("the log began at %d, and begins at %d" % (life.oldest, tables.oldest))
            hidden = [each for each in life.present if life.oldest <= each < tables.oldest]
            for position in sorted(hidden):
                if not self._is_old(position, now):
                    raise Violation(
                        "%r was trimmed, too young: its time is %s, it came %.3f s ago"
                        % (
                            life.entries[position],
                            life.times[position],
                            now - life.entries[position].since,
                        )
                    )
            life.oldest = tables.oldest
        if any(each >= life.oldest for each in gone):
            raise Violation("events %s are gone, and the log begins at %d" % (sorted(gone), life.oldest))
        life.present -= gone
        for position in life.present:
            self._compare(position, tables.events[position])

    def _take_new(self, tables, now, time_text):
        life = self.life
        head = life.head if tables.log_id is None else tables.head
        new = range(life.head + 1, head + 1)
        if head < life.head:
            raise Violation("the log ended at %d, and ends at %d" % (life.head, head))
        ids = life.known_ids()
        strange = set(tables.events) - life.present - set(new)
        if strange:
            raise Violation("events came to %s, and the log ends at %d" % (sorted(strange), head))
        for position in new:
            if position not in tables.events:
                raise Violation("the log ends at %d, and %d is not there" % (head, position))
            key, event_id, channel, time = tables.events[position]
            row = self.outbox.pop(key, None)
            if row is None:
                if channel != "$erase":
                    raise Violation("%.9s came to position %d, and does not wait any more" % (key, position))
                row = Row(key, event_id, channel)
            if not row.fit or channel != row.channel or row.event_id not in (None, event_id):
                raise Violation("%.9s became another: %s, %s" % (key, event_id, channel))
            if event_id in ids:
                raise Violation(
                    "%.9s came to position %d, and the log has its id %s" % (key, position, event_id)
                )
            if row.group is not None:
                if life.last.get(row.group, -1) > row.number:
                    raise Violation("%.9s came behind a later row of its transaction" % key)
                life.last[row.group] = row.number
            ids.add(event_id)
            life.entries[position] = Entry(position, key, event_id, channel, now)
            life.present.add(position)
            life.times[position] = time if time is not None else time_text
            life.erased.pop(position, None)
            life.doubtful.discard(position)
        life.head = head

    def _take_outbox(self, tables, known):
        # Those beyond the head of a damaged log too: it has them once it is repaired.
        beyond = {self.life.entries[each].id for each in self.life.present if each > self.life.head}
        known = known | self.life.known_ids() | beyond
        for key in set(self.outbox) - set(tables.outbox):
            row = self.outbox.pop(key)
            if key in tables.aside:
                if row.fit:
                    raise Violation("%.9s was set aside" % key)
                self.aside.add(key)
            elif not row.fit or row.event_id not in known:
                raise Violation("%.9s, id %s, does not wait any more, and is nowhere" % (key, row.event_id))
        for key in set(tables.outbox) - set(self.outbox):
            event_id, channel = tables.outbox[key]
            if channel != "$erase":
                raise Violation("%.9s waits, and nobody published it" % key)
            self.outbox[key] = Row(key, event_id, channel)

    def _compare(self, position, found):
        entry = self.life.entries[position]
        key, event_id, channel, _ = found
        if position in self.life.erased:
            if (key, channel) != ("null", "$erased") or event_id == entry.id:
                raise Violation("%r was erased, and is there" % entry)
        elif (key, event_id, channel) != (entry.key, entry.id, entry.channel):
            raise Violation("%r became another: %s, %s, %s" % (entry, key, event_id, channel))

    def _is_old(self, position, now):
        life = self.life
        if self._events and sum(1 for each in life.present if each > position) >= self._events:
            return True
        if not self._seconds:
            return False
        border = now - self._seconds + CLOCK_SLACK
        return life.times[position] < text_of(border) or life.entries[position].since < border

    # What a reader was told.

    def answered(self, reader, upto, events, memory=None):
        """An answer with *events*, [(position, key, id, channel)], whose cursor is at *upto*.

        Args:
            memory: Of the worker that answered; None when it was read from the database.
        """
        # Who waits may be told what the log said when the wait began.
        lives = [self.life, reader.waits_since]
        if memory is not None:
            lives.append(memory.life)
        lives = [each for number, each in enumerate(lives) if each is not None and each not in lives[:number]]
        events = [each for each in events if not each[3].startswith(OURS)]
        wrong = []
        for life in lives:
            wrong.append(self._wrong(life, reader, upto, events, memory))
            if wrong[-1] is None:
                reader.stand(life, upto)
                reader.given.update(life.entries[each[0]] for each in events)
                return
        raise Violation("%s, from %s to %s: %s" % (reader.name, reader.place, upto, "; or ".join(wrong)))

    def _wrong(self, life, reader, upto, events, memory):
        if reader.place is None:
            start = life.oldest - 1
        else:
            start = reader.place
            if reader.life_id != life.log_id:
                return "its cursor is of another log"
            if life.entries.get(start) is not reader.anchor:
                return "its cursor is of another life: %r, and now there is %r" % (
                    reader.anchor,
                    life.entries.get(start),
                )
        if not start <= upto <= life.head:
            return "its cursor is not between %d and %d" % (start, life.head)
        positions = [each[0] for each in events]
        if positions != sorted(set(positions)):
            return "it was given %s, not in order" % positions
        got = {each[0]: each[1:] for each in events}
        for position in range(start + 1, upto + 1):
            entry, given = life.entries.get(position), got.pop(position, None)
            wanted = entry is not None and reader.wants(entry.channel)
            if given is None:
                skips = position in life.erased or (memory is not None and position in life.doubtful)
                # Who has no cursor has seen nothing, and is given what there is.
                skips = skips or (reader.place is None and not life.holds(position))
                if wanted and not skips:
                    return "it was not given %r (%s)" % (
                        entry,
                        "there" if life.holds(position) else "lost",
                    )
                continue
            if not wanted or given != (entry.key, entry.id, entry.channel):
                return "it was given %s at %d, and the log has %r" % (given[1:], position, entry)
            if memory is None and not life.holds(position):
                return "it was given %r, which is lost" % entry
            if position in life.erased and (memory is None or life.erased[position] <= memory.settled):
                return "it was given %r, which was erased" % entry
            if entry in reader.given:
                return "it was given %r twice" % entry
        if got:
            return "it was given %s, not between %d and %d" % (sorted(got), start, upto)
        return None

    def refused(self, reader, head):
        """A 410; the reader goes on from *head*."""
        if not self._may_refuse(reader):
            raise Violation(
                "%s was told 410 at %s, and the log has all that follows up to %d"
                % (reader.name, reader.place, self.life.head)
            )
        if head != self.life.head:
            raise Violation("the log ends at %d, and %s was told %d" % (self.life.head, reader.name, head))
        reader.stand(self.life, head)
        reader.given = set()

    def _may_refuse(self, reader):
        life, place = self.life, reader.place
        if place is None:
            return False
        if reader.life_id != life.log_id or reader.vague or life.entries.get(place) is not reader.anchor:
            return True
        if place and place not in life.present:
            return True
        return not all(life.holds(each) for each in range(place + 1, life.head + 1))


def text_of(seconds):
    """RFC 3339, UTC, milliseconds, of seconds since 1970."""
    moment = datetime(1970, 1, 1) + timedelta(seconds=seconds)
    return "%04d%s.%03dZ" % (moment.year, moment.strftime("-%m-%dT%H:%M:%S"), moment.microsecond // 1000)
