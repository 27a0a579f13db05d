/* The arena: when the writer may use an extent again. One writer, two readers, two extents.
 *
 * Mirrors Arena in core/arena/arena.hpp, and Hold and PyRingReader in core/bindings/. README.md
 * says what is proven and what is left out. One step makes one access to shared memory, which is
 * sequentially consistent; the ring is a log of messages in which a reader waits for the next.
 *
 * The macros leave a necessary step out each, see the table in README.md.
 */

#ifndef SENDS
#define SENDS 3 /* messages, each with one extent */
#endif
#define EXTENTS 2
#define READERS 2
#define NEVER 255

/* Shared memory. A message's slot is not used again: the ring's credit is protocol.pml's affair. */
byte published;               /* messages */
byte extent_of[SENDS];        /* the message's word */
byte consumed[READERS];
byte held[READERS * EXTENTS];
byte content[EXTENTS];        /* the arena: what was last written there */

bool dead[READERS]; /* what the writer may find out, at any time after it */

#define hold(reader, extent) held[(reader) * EXTENTS + (extent)]

/* ---- Arena, in the writer ---- */

/* Two loads, one by one, as in is_done(). */
inline look_at(reader, extent) {
  if
  :: free && !is_marked_dead[reader] ->
#ifndef CONSUMED_IGNORED
#ifdef HELD_READ_FIRST
    free = (hold(reader, extent) == 0);
    free = free && (consumed[reader] >= last[extent])
#else
    free = (consumed[reader] >= last[extent]);
    if
    :: free -> free = (hold(reader, extent) == 0)
    :: else
    fi
#endif
#else
    free = (hold(reader, extent) == 0)
#endif
  :: else
  fi
}

active proctype writer() {
  byte message, at;
  byte last[EXTENTS];
  bool is_marked_dead[READERS];
  bool free;

  do
  :: message == SENDS -> break
  :: message < SENDS ->
    /* Any extent that is free; a message without one is streamed, which is nothing here. */
    if
    :: at = 0
    :: at = 1
    fi;
    free = true;
    look_at(0, at);
    look_at(1, at);
    if
    :: free ->
      content[at] = message + 1;
      extent_of[message] = at;
      atomic { message++; published = message; last[at] = message }
    :: else
    fi
  :: d_step { dead[0] && !is_marked_dead[0] -> is_marked_dead[0] = true }
  :: d_step { dead[1] && !is_marked_dead[1] -> is_marked_dead[1] = true }
#ifdef ALIVE_MARKED_DEAD
  :: d_step { !is_marked_dead[1] -> is_marked_dead[1] = true }
#endif
  od
}

/* ---- Reader: up to two views at a time, dropped in any order, also after it has closed ---- */

inline take_out(extent, expected) {
  assert(content[extent] == expected); /* the last look */
  atomic { hold(mine, extent)--; expected = 0 }
}

proctype reader(byte mine) {
  byte next, at;
  byte view[EXTENTS]; /* of the extent: what was seen in it; 0: none. A view of each at most */
  bool is_closed;

  {
    do
    :: !is_closed && next < published ->
      at = extent_of[next];
#ifndef COUNTED_LATE
      hold(mine, at)++; /* its own word: nobody else changes it */
#endif
      assert(content[at] == next + 1); /* the message's own bytes are there until it is consumed */
      atomic { next++; consumed[mine] = next }
#ifdef COUNTED_LATE
      hold(mine, at)++;
#endif
      assert(content[at] == next);
      view[at] = next;
    :: view[0] != 0 -> take_out(0, view[0])
    :: view[1] != 0 -> take_out(1, view[1])
    :: !is_closed ->
      /* With messages unread, and perhaps views. */
#ifdef LEAVING_CLEARS_HELD
      hold(mine, 0) = 0;
      hold(mine, 1) = 0;
#endif
      atomic { consumed[mine] = NEVER; is_closed = true }
    :: is_closed && view[0] == 0 && view[1] == 0 -> break
    od
  } unless {
    dead[mine];
    d_step { next = 0; at = 0; view[0] = 0; view[1] = 0; is_closed = false }
  }
}

init {
  atomic { run reader(0); run reader(1) }
}

active proctype death() {
end:
  do
  :: d_step { !dead[0] && !dead[1] -> dead[1] = true }
  od
}
