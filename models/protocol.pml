/* The ring's protocol: slots, credit, messages larger than the ring, abandoning, closing, leaving,
 * death at any step, dropping the dead, and rejoining. One writer, two seats for readers.
 *
 * Mirrors RingWriter and RingReader in core/ring/. README.md says what is proven,
 * within which bounds, and what is left out. One step makes one access to shared memory. Memory is
 * sequentially consistent, and a wait is a guard that holds its process back until what it waits
 * for is there: park_wake.pml has the store buffers and the wake-ups.
 *
 * What a wait's guard reads is either one word, or a member's death and then a word which that
 * member can no longer change: it may stand for the accesses that find the same one by one.
 *
 * The macros at the top choose a search. Those further down leave a necessary step out each, see
 * the table in README.md.
 */

#ifndef SENDS
#define SENDS 2 /* messages that the writer begins */
#endif
#ifndef LONGEST
#define LONGEST 3 /* fragments of a message, at most: more than the ring has slots */
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef RAISE
#define RAISE 0 /* 0: the policy "drop"; 1: whoever waits and finds a member dead ends */
#endif
#ifdef REJOIN /* the second reader dies and is replaced; no reader stops of its own accord */
#ifndef REPLACEMENTS
#define REPLACEMENTS 1 /* processes that want the second reader's seat, once it may be taken */
#endif
#ifndef MORTAL
#define MORTAL 4
#endif
#define MAY_STOP false
#else
#define REPLACEMENTS 0
#define MAY_STOP (mine == SEAT_B) /* drops messages, and leaves; enough if one of them may */
#endif
#ifndef A_LEAVES
#define A_LEAVES 0 /* 1: who sits in the first seat leaves at once, so that more fits elsewhere */
#endif
#ifndef DEATHS
#define DEATHS 1 /* in one run, at most */
#endif
#ifndef FAILS
#define FAILS 0 /* 1: who sits in the second seat may end without leaving, and live on */
#endif
#define MAY_FAIL (FAILS && mine == SEAT_B)
#ifndef MORTAL
#define MORTAL 31 /* who may die: bit p is process p */
#endif

/* Processes. Their numbers are their pids: no pid is used twice. */
#define WRITER 0
#define READER_A 1
#define READER_B 2
#define PROCESSES (3 + REPLACEMENTS)

/* Seats. */
#define SEAT_A 0
#define SEAT_B 1

/* A seat's word; 0 is vacant. */
#define ATTACHED 1
#define LEFT 2
#define DROPPED 3
#define CLAIMED 4
#define REJOINING 5
#define FAILED 6
#define word(pid, state) ((state) * 8 + (pid))
#define pid_in(word) ((word) % 8)
#define state_in(word) ((word) / 8)
#define taken(word) (word != 0 && state_in(word) != LEFT && state_in(word) != DROPPED)
#ifdef FAILED_ARE_KEPT
#define orphaned(word) (taken(word) && dead[pid_in(word)])
#else
#define orphaned(word) (taken(word) && (dead[pid_in(word)] || state_in(word) == FAILED))
#endif

/* Shared memory. */
byte seq[SLOTS], descriptor[SLOTS], payload[SLOTS];
byte seat[2], consumed[2];
byte rejoins;
bool closed;
#define NEVER 255

bool dead[PROCESSES]; /* what anybody may ask at any time */

/* For assertions only. */
byte published;      /* fragments */
byte begun[2];       /* messages before the seat's reader was admitted */

#define slot(fragment) ((fragment) % SLOTS)
#define content(message, index) ((message) * 8 + (index) + 1) /* tells every fragment from others */

inline compare_and_swap(at, expected, desired) {
  d_step {
    swapped = (seat[at] == expected);
    if
    :: swapped -> seat[at] = desired
    :: else
    fi
  }
}

/* ---- RingWriter ---- */

#define credit (next - consumed_by_all < SLOTS)
#define room(at) (next - consumed[at] < SLOTS)
#define least(at, other) (consumed[at] < other -> consumed[at] : other)

/* A dead reader is waited for no longer. Where the swap fails, a replacement has claimed the seat:
 * it sees to `consumed`, or dies and is found here. */
inline drop(at) {
  compare_and_swap(at, found, word(pid_in(found), DROPPED));
#ifndef DROP_KEEPS_CONSUMED
  if
  :: swapped -> consumed[at] = NEVER
  :: else
  fi;
#endif
  look_for_readers()
}

inline look_for_readers() {
  failed = !taken(seat[SEAT_A]);
  atomic {
    if
    :: failed -> failed = !taken(seat[SEAT_B])
    :: else
    fi
  }
}

/* Ends with credit, or `gave_up` (timed out), or `failed` (a member is dead, or no reader left). */
inline wait_for_credit() {
  do
  :: credit || failed -> break
  :: else ->
#ifdef NO_CREDIT
    break;
#endif
    consumed_by_all = least(SEAT_A, next);
    atomic {
      consumed_by_all = least(SEAT_B, consumed_by_all);
      if
      :: credit -> break
      :: !credit && index > 0 -> gave_up = true; break
      :: !credit
      fi
    }
    if
    :: room(SEAT_A) && room(SEAT_B)
    :: RAISE && (orphaned(seat[SEAT_A]) || orphaned(seat[SEAT_B])) -> failed = true
    :: d_step { !RAISE && orphaned(seat[SEAT_A]) -> found = seat[SEAT_A] } drop(SEAT_A)
    :: d_step { !RAISE && orphaned(seat[SEAT_B]) -> found = seat[SEAT_B] } drop(SEAT_B)
    fi
  od
}

inline admit(at) {
  found = seat[at];
  if
  :: state_in(found) == REJOINING ->
    begun[at] = message;
#ifndef ADMITTED_ANYWHERE
    consumed[at] = next; /* first, for an attached reader starts from there */
#endif
    compare_and_swap(at, found, word(pid_in(found), ATTACHED));
    if
    :: swapped
    :: else ->
      /* It gave up, or died and the seat was claimed anew. Who claimed it may have stored its NEVER
       * already, and would be waited for before it reads. */
#ifndef FAILED_ADMISSION_KEEPS_CONSUMED
      consumed[at] = NEVER
#endif
    fi
  :: else
  fi;
  found = 0
}

/* The count first, then the seats: who counts later is seen next time. */
inline admit_rejoining() {
  d_step { anybody = (rejoins != seen); seen = rejoins }
  if
  :: anybody -> anybody = false; admit(SEAT_A); admit(SEAT_B)
  :: else
  fi
}

inline store_seq() {
  d_step { seq[slot(next)] = next + 1; published = next + 1 }
}

inline publish_fragment() {
#ifdef SEQ_BEFORE_PAYLOAD
  store_seq();
#endif
  payload[slot(next)] = content(message, index);
  descriptor[slot(next)] = (index == 0 -> length : 0);
  atomic {
#ifndef SEQ_BEFORE_PAYLOAD
    store_seq();
#endif
    next++;
    index++
  }
}

active proctype writer() {
  byte next, consumed_by_all;
  byte message, length, index; /* messages before this one; its fragments, and how many are out */
  byte seen, found;
  bool anybody, swapped, gave_up, failed;

  {
    seat[SEAT_A] != 0 && seat[SEAT_B] != 0; /* wait_ready() */
    do
    :: message == SENDS || failed -> break
    :: else ->
      admit_rejoining();
      look_for_readers();
      if
      :: failed
      :: !failed -> length = 1
      :: !failed -> length = LONGEST
      fi;
      do
      :: d_step {
          index == length || gave_up || failed ->
          message++;
          index = 0;
          length = 0;
          gave_up = false
        }
        break
      :: else ->
#ifdef ADMITTED_IN_MID_MESSAGE
        admit_rejoining();
#endif
        wait_for_credit();
        if
        :: gave_up || failed
        :: else -> publish_fragment()
        fi
      od
    od;
    closed = true
  } unless {
    dead[WRITER]
  }
}

/* ---- RingReader ---- */

#define readable (seq[slot(next)] == next + 1)

/* Ends with a fragment, or `ended`. */
/* The second look: what was published before there was a reason to end is still delivered. */
inline end_unless_readable() {
  atomic {
    if
#ifndef NO_SECOND_LOOK
    :: readable
#endif
    :: else ->
      assert(next == published || (!closed && !dead[WRITER]));
      break
    fi
  }
}

inline copy_word() {
  assert(payload[slot(next)] == content(message - 1, index))
}

inline release_slot() {
  consumed[mine] = next + 1
}

/* Takes one fragment. `message` counts messages begun, `index` fragments of this one. */
inline take() {
  atomic {
    start = descriptor[slot(next)];
#ifdef START_IGNORED
    if
    :: index < length -> start = 0
    :: else
    fi;
#endif
    if
    :: start > 0 -> message++; length = start; start = 0; index = 0; dropped = false
    :: else
    fi;
    assert(index < length); /* this is a message whose start was seen */
    if
    :: true
    :: MAY_STOP -> dropped = true /* no memory for it; what is left of it is skipped */
    fi
  }
#ifdef RELEASED_BEFORE_COPY
  release_slot();
#endif
  if
  :: dropped
  :: else ->
    copy_word(); /* the memcpy: its first byte, */
    copy_word()  /* and its last */
  fi;
  atomic {
#ifndef RELEASED_BEFORE_COPY
    release_slot();
#endif
    next++;
    index++;
    if
    :: true
    :: MAY_STOP || MAY_FAIL -> break
    fi
  }
}

/* `consumed` first: dead between the two, it is dead and has not left, and nobody waits for it. */
inline leave() {
#ifdef LEFT_BEFORE_CONSUMED
  seat[mine] = word(_pid, LEFT);
  consumed[mine] = NEVER
#else
  consumed[mine] = NEVER;
  seat[mine] = word(_pid, LEFT)
#endif
}

/* Says itself what else its death would say: the drop sees to `consumed`. Of its views of the arena,
 * which it may keep, arena.pml speaks. */
inline fail(state) {
  d_step {
    if
    :: seat[mine] == word(_pid, state) -> seat[mine] = word(_pid, FAILED)
    :: else
    fi
  }
}

inline read_messages() {
  do
  :: if
    :: readable
    :: closed || dead[WRITER] -> end_unless_readable()
#ifdef STATE_BEFORE_DEATH
    :: RAISE && taken(seat[other]) ->
      if
      :: dead[other + READER_A] -> assert(orphaned(seat[other])); break
      :: readable
      :: closed || dead[WRITER] -> end_unless_readable()
      fi
#else
    :: RAISE && orphaned(seat[other]) -> end_unless_readable()
#endif
    fi;
    take()
  od;
  if
  :: leave()
  :: MAY_FAIL -> fail(ATTACHED)
  fi
}

/* So that the dead are told apart by nothing. */
inline forget() {
  d_step { next = 0; message = 0; length = 0; index = 0; start = 0; dropped = false }
}

active [2] proctype reader() {
  byte next, message, length, index, start;
  byte mine = _pid - READER_A, other = READER_B - _pid;
  bool dropped;

  {
    seat[mine] = word(_pid, ATTACHED);
    if
    :: mine == SEAT_A && A_LEAVES -> leave()
    :: else -> read_messages()
    fi;
    forget()
  } unless {
    dead[_pid];
    forget()
  }
}

#if REPLACEMENTS
/* Another process that wants SEAT_B. */
active [REPLACEMENTS] proctype replacement() {
  byte next, message, length, index, start;
  byte mine = SEAT_B, other = SEAT_A;
  byte found;
  bool dropped, swapped, impatient;

  {
end: /* it may never get the seat */
    do
    :: d_step { state_in(seat[mine]) == DROPPED || orphaned(seat[mine]) -> found = seat[mine] }
#ifdef CLAIM_BY_STORE
      d_step { seat[mine] = word(_pid, CLAIMED); swapped = true };
#else
      compare_and_swap(mine, found, word(_pid, CLAIMED));
#endif
      if
      :: d_step { swapped -> found = 0 } break
      :: else /* another has it */
      fi
    od;
#ifndef CLAIM_KEEPS_CONSUMED
    consumed[mine] = NEVER;
#endif
    compare_and_swap(mine, word(_pid, CLAIMED), word(_pid, REJOINING));
    assert(swapped); /* only the dead are dropped */
    atomic {
      rejoins++;
      swapped = false;
      if
      :: true
      :: impatient = true
      fi
    }
    if
    :: seat[mine] == word(_pid, ATTACHED)
    :: closed || dead[WRITER] || impatient ->
      compare_and_swap(mine, word(_pid, REJOINING), word(_pid, (MAY_FAIL -> FAILED : DROPPED)))
    fi;
    if
    :: swapped
    :: else -> /* admitted, perhaps at the last moment */
      next = consumed[mine];
      message = begun[mine];
      read_messages()
    fi;
    forget()
  } unless {
    dead[_pid];
    forget();
    d_step { found = 0; swapped = false; impatient = false }
  }
}
#endif

/* ---- Death comes at any step ---- */

inline kill(process) {
  d_step {
    deaths < DEATHS && ((MORTAL >> process) & 1) && !dead[process] ->
    dead[process] = true;
    deaths++
  }
}

active proctype death() {
  byte deaths;

  seat[SEAT_A] != 0 && seat[SEAT_B] != 0;
end:
  do
  :: kill(WRITER)
  :: kill(READER_A)
  :: kill(READER_B)
#if REPLACEMENTS > 0
  :: kill(3)
#endif
#if REPLACEMENTS > 1
  :: kill(4)
#endif
  od
}
