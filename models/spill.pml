/* The spill: when a place in it may be used again, or its memory be given back. One writer, two
 * readers, two places, and the thread that gives back.
 *
 * Mirrors SpillQueue and Spilling in core/ring/spill.hpp, SpillArea in core/arena/spill.hpp, and
 * RingReader::fetch(). README.md says what is proven and what is left out. One step makes one access
 * to shared memory, which is sequentially consistent; the ring is a log of fragments in which a
 * reader waits for the next.
 *
 * The macros at the top choose a search. The others leave a necessary step out each, see the table
 * in README.md.
 */

#ifndef SENDS
#define SENDS 3 /* messages, each with one place, or streamed */
#endif
#ifdef BOTH_LEAVE
#define MAY_LEAVE true
#else
#define MAY_LEAVE (mine == 1 || is_over) /* enough, mostly, if one of them may */
#endif
#define PLACES 2
#define READERS 2
#define NEVER 255

/* Shared memory. A fragment's slot is not used again: the ring's credit is protocol.pml's affair. */
byte published;            /* fragments */
byte place_of[2 * SENDS];  /* the fragment's word: its place + 1; 0: its bytes are in its slot */
byte expected[2 * SENDS];  /* for assertions only: what it has there */
byte consumed[READERS];
byte content[PLACES];      /* what was last written there */
bool has_memory[PLACES];

/* The writer's process. */
byte end_of[PLACES];       /* who has consumed so many fragments has all of what is there */
bool locked;

bool dead[READERS]; /* what the writer may find out, at any time after it */
bool is_over;       /* the writer has sent its messages */

#ifdef NO_MUTEX
#define lock() skip
#define unlock() skip
#else
#define lock() atomic { !locked -> locked = true }
#define unlock() locked = false
#endif

/* consumed_by_all(): two loads, one by one. */
inline look(least) {
#ifdef UNSETTLED_IS_FREE
  least = NEVER;
#else
  least = NEVER - 1;
#endif
#ifndef CONSUMED_IGNORED
  least = (consumed[0] < least -> consumed[0] : least);
  least = (consumed[1] < least -> consumed[1] : least)
#endif
}

inline publish(word) {
  atomic {
    place_of[published] = word;
    expected[published] = message;
    published++
  }
}

active proctype writer() {
  byte message, at, least;
  bool is_marked_dead[READERS];

  do
  :: message == SENDS -> is_over = true; break
  :: message < SENDS ->
    message++;
    if
    :: at = 0
    :: at = 1
    fi;
    lock();
    look(least);
    if
    :: end_of[at] > least -> unlock() /* streamed, which is nothing here */
    :: else ->
      atomic { end_of[at] = NEVER; unlock() }
      atomic { lock(); has_memory[at] = true; unlock() }
      content[at] = 0; /* half of it */
      content[at] = message;
      assert(has_memory[at] && content[at] == message);
      if /* It may be given up before its fragment is out, or then, or not. */
      :: skip
      :: publish(at + 1)
      :: publish(at + 1); publish(0)
      fi;
      atomic {
        lock();
#ifdef SETTLED_EARLY
        end_of[at] = (published == 0 -> 0 : published - 1);
#else
        end_of[at] = published;
#endif
        unlock()
      }
    fi;
    atomic { at = 0; least = 0 }
  :: d_step { dead[0] && !is_marked_dead[0] -> is_marked_dead[0] = true; consumed[0] = NEVER }
  :: d_step { dead[1] && !is_marked_dead[1] -> is_marked_dead[1] = true; consumed[1] = NEVER }
#ifdef ALIVE_DROPPED
  :: d_step { !is_marked_dead[1] -> is_marked_dead[1] = true; consumed[1] = NEVER }
#endif
  od
}

/* Gives back what nobody uses. */
active proctype keeper() {
  byte least;

end:
  do
  :: lock();
    look(least);
    if
    :: end_of[0] <= least && end_of[1] <= least ->
      d_step {
        has_memory[0] = false;
        content[0] = 0;
        has_memory[1] = false;
        content[1] = 0
      }
    :: else
    fi;
    atomic { least = 0; unlock() }
  od
}

#define copied assert(place_of[next] == 0 || content[place_of[next] - 1] == expected[next])

proctype reader(byte mine) {
  byte next;
  bool is_closed;

  {
    do
    :: !is_closed && next < published ->
#ifdef RELEASED_BEFORE_COPY
      consumed[mine] = next + 1;
#endif
      copied; /* its first byte, and its last */
      copied;
#ifndef RELEASED_BEFORE_COPY
      consumed[mine] = next + 1;
#endif
      next++
    :: !is_closed && MAY_LEAVE -> /* with fragments unread, perhaps in mid-message */
      atomic { consumed[mine] = NEVER; is_closed = true }
    :: is_closed -> break
    od
  } unless {
    dead[mine];
    d_step { next = 0; is_closed = false }
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
