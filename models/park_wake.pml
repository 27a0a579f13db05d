/* Park and wake between one writer and two readers, on a memory with store buffers.
 *
 * Mirrors Gate and Waiter in core/wait/, RingWriter and RingReader in core/ring/;
 * inlines and comments name the C++ functions. README.md says what is proven and what is left out.
 *
 * One step makes one access to shared memory, so that Spin tries every interleaving of accesses. A
 * plain store goes into its process's buffer and becomes visible when it is flushed: any time
 * later, in order (x86-TSO). Every C++ access below is seq_cst where no order is named. On x86-64
 * a seq_cst store is an xchg, or a mov and an mfence, which is the same to all who look; seq_cst
 * loads are plain ones; a read-modify-write is locked, which drains the buffer first.
 *
 * Each of these macros leaves one fence out, and then a wake-up can be lost:
 *   NO_WRITER_FENCE         publish_fragment():  store seq / load the lobby's gate
 *   NO_READER_FENCE         wait_readable():     announce at the lobby's gate / load seq
 *   NO_CREDIT_READER_FENCE  release_slot():      store consumed / load wake_at
 *   NO_CREDIT_WRITER_FENCE  wait_for_credit():   store wake_at, announce / load consumed
 * The last one is two: on x86-64 the announcement drains wake_at too, so that without its own fence
 * (PLAIN_WAKE_AT) nothing is lost, whereas a fence for wake_at alone (PLAIN_ANNOUNCEMENT) comes too
 * early. The C++ rules know no such draining of a relaxed store, so that there it needs both.
 */

#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef FRAGMENTS
#define FRAGMENTS 4
#endif
#ifndef INTERRUPTIONS
#define INTERRUPTIONS 0 /* how many sleeps may end early, in all: a signal, the end of a slice */
#endif
#ifndef DEPTH
#define DEPTH 4 /* of a store buffer; a store into a full one waits */
#endif

#ifdef NO_CREDIT_WRITER_FENCE
#define PLAIN_WAKE_AT
#define PLAIN_ANNOUNCEMENT
#endif

/* Processes. */
#define WRITER 0
#define READER_A 1
#define READER_B 2

/* Addresses in shared memory. */
#define LOBBY_GATE 1
#define SEAT_GATE 2
#define WAKE_AT 3
#define CONSUMED(reader) (3 + (reader))
#define SEQ(fragment) (6 + (fragment) % SLOTS)
#define PAYLOAD(fragment) (6 + SLOTS + (fragment) % SLOTS)
#define WORDS (6 + 2 * SLOTS)

#define NEVER 0 /* kNever: a count that no reader reports */

/* A gate's word: the low half counts who has announced, the high half counts wake-ups. Assertions
 * guard both against running over. */
#define WAKE_UP 8
#define announced(word) ((word) % WAKE_UP)
#define wake_ups(word) ((word) / WAKE_UP)

byte memory[WORDS];

typedef StoreBuffer {
  byte count;
  byte address[DEPTH];
  byte value[DEPTH]
};
#define ADD 128 /* in an address: flushed as an addition, see announce_unfenced() */
StoreBuffer buffer[3];

byte asleep_on[3]; /* address of a gate; 0: awake */
byte interruptions;

byte i, loaded; /* scratch within a step; zero between steps, so that they tell no states apart */

/* ---- Memory ---- */

#define drained (buffer[_pid].count == 0)

/* A store that is not seq_cst. */
inline store(to, what) {
  d_step {
    buffer[_pid].count < DEPTH ->
    buffer[_pid].address[buffer[_pid].count] = to;
    buffer[_pid].value[buffer[_pid].count] = what;
    buffer[_pid].count++
  }
}

/* A seq_cst store: xchg. */
inline exchange(to, what) {
  d_step {
    drained ->
    memory[to] = what
  }
}

/* Part of a step. Forwards from the process's own buffer, where the newest entry wins. */
inline load(result, from) {
  result = memory[from];
  for (i : 0 .. buffer[_pid].count - 1) {
    if
    :: buffer[_pid].address[i] == from -> result = buffer[_pid].value[i]
    :: buffer[_pid].address[i] == ADD + from -> result = result + buffer[_pid].value[i]
    :: else
    fi
  }
  i = 0
}

#define oldest buffer[process].address[0]

inline flush(process) {
  d_step {
    buffer[process].count > 0 ->
    if
    :: oldest < ADD -> memory[oldest] = buffer[process].value[0]
    :: else ->
      memory[oldest - ADD] = memory[oldest - ADD] + buffer[process].value[0];
      assert(announced(memory[oldest - ADD]) > 0)
    fi;
    for (i : 1 .. buffer[process].count - 1) {
      buffer[process].address[i - 1] = buffer[process].address[i];
      buffer[process].value[i - 1] = buffer[process].value[i]
    }
    i = 0;
    buffer[process].count--;
    buffer[process].address[buffer[process].count] = 0;
    buffer[process].value[buffer[process].count] = 0
  }
}

/* ---- The futex: the kernel compares and queues under a lock, and taking it drains ---- */

inline futex_wait(gate) {
  if
  :: d_step { drained && wake_ups(memory[gate]) == wake_ups(ticket) -> asleep_on[_pid] = gate }
    if
    :: asleep_on[_pid] == 0
    :: d_step {
        asleep_on[_pid] != 0 && interruptions < INTERRUPTIONS ->
        asleep_on[_pid] = 0;
        interruptions++;
        interrupted = true
      }
    fi
  :: drained && wake_ups(memory[gate]) != wake_ups(ticket)
  fi
}

inline futex_wake(gate) {
  d_step {
    for (i : WRITER .. READER_B) {
      if
      :: asleep_on[i] == gate -> asleep_on[i] = 0
      :: else
      fi
    }
    i = 0
  }
}

/* ---- Gate ---- */

/* announce(): a locked addition. */
inline announce(gate) {
  d_step {
    drained ->
    ticket = memory[gate];
    memory[gate] = ticket + 1;
    assert(announced(memory[gate]) > 0)
  }
}

/* announce() without a fence: memory still adds as one step, but later loads overtake that. */
inline announce_unfenced(gate) {
  d_step { load(ticket, gate) }
  store(ADD + gate, 1)
}

/* withdraw(): its compare-and-swaps, repeated until one succeeds or a wake-up is seen, come down to
 * one locked step. */
inline withdraw(gate) {
  d_step {
    drained ->
    if
    :: wake_ups(memory[gate]) == wake_ups(ticket) ->
      assert(announced(memory[gate]) > 0);
      memory[gate] = memory[gate] - 1
    :: else
    fi;
    ticket = 0
  }
}

/* wake(): a load, then locked compare-and-swaps as long as somebody has announced. */
inline wake(gate) {
  d_step { load(word, gate) }
  do
  :: d_step { announced(word) == 0 -> word = 0 }
    break
  :: d_step { announced(word) > 0 && drained && memory[gate] != word -> word = memory[gate] }
  :: d_step {
      announced(word) > 0 && drained && memory[gate] == word ->
      memory[gate] = (wake_ups(word) + 1) * WAKE_UP;
      assert(memory[gate] > word);
      word = 0
    }
    futex_wake(gate);
    break
  od
}

/* ---- Which fences there are ---- */

#ifdef NO_WRITER_FENCE
#define store_seq(fragment, what) store(SEQ(fragment), what)
#else
#define store_seq(fragment, what) exchange(SEQ(fragment), what)
#endif

#ifdef NO_READER_FENCE
#define announce_reader() announce_unfenced(LOBBY_GATE)
#else
#define announce_reader() announce(LOBBY_GATE)
#endif

#ifdef NO_CREDIT_READER_FENCE
#define store_consumed(what) store(CONSUMED(_pid), what)
#else
#define store_consumed(what) exchange(CONSUMED(_pid), what)
#endif

#ifdef PLAIN_WAKE_AT
#define store_wake_at(what) store(WAKE_AT, what)
#else
#define store_wake_at(what) exchange(WAKE_AT, what)
#endif

#ifdef PLAIN_ANNOUNCEMENT
#define announce_writer() announce_unfenced(SEAT_GATE)
#else
#define announce_writer() announce(SEAT_GATE)
#endif

/* ---- RingWriter ---- */

#define credit (next - consumed_by_all < SLOTS)

/* has_credit(), refresh_consumed_by_all() */
inline has_credit() {
  if
  :: credit
  :: else ->
    d_step { load(least, CONSUMED(READER_A)) }
    d_step {
      load(loaded, CONSUMED(READER_B));
      consumed_by_all = (least < loaded -> least : loaded);
      least = 0;
      loaded = 0
    }
  fi
}

inline wait_for_credit() {
  store_wake_at(next - SLOTS / 2);
  if /* Waiter: has spun, or not */
  :: has_credit()
  :: skip
  fi;
  do
  :: credit || interrupted -> break
  :: else ->
    announce_writer();
    has_credit(); /* the second look */
    if
    :: credit -> withdraw(SEAT_GATE); break
    :: else
    fi;
    futex_wait(SEAT_GATE);
    withdraw(SEAT_GATE);
    has_credit()
  od;
  interrupted = false;
  store(WAKE_AT, NEVER) /* relaxed */
}

inline publish_fragment() {
  store(PAYLOAD(next), next + 1); /* the memcpy */
  next++;
  store_seq(next - 1, next);
  if
  :: is_start || is_last -> wake(LOBBY_GATE)
  :: else
  fi
}

active proctype writer() {
  byte next, consumed_by_all, least;
  byte ticket, word;
  bool is_start, is_last = true;
  bool interrupted;

  do
  :: next == FRAGMENTS -> break
  :: else ->
    is_start = is_last;
    if /* fragments make up messages in every possible way */
    :: is_last = true
    :: next + 1 < FRAGMENTS -> is_last = false
    fi;
    has_credit(); /* advance() */
    do
    :: credit -> break
    :: else -> /* or interrupted, and the caller has called again */
      wake(LOBBY_GATE);
      wait_for_credit()
    od;
    publish_fragment()
  od
}

/* ---- RingReader ---- */

/* readable() */
inline look() {
  d_step {
    load(loaded, SEQ(next));
    readable = (loaded == next + 1);
    loaded = 0
  }
}

inline wait_readable() {
  look();
  do
  :: readable || interrupted -> break
  :: else ->
    announce_reader();
    look(); /* the second look */
    if
    :: readable -> withdraw(LOBBY_GATE); break
    :: else
    fi;
    futex_wait(LOBBY_GATE);
    withdraw(LOBBY_GATE);
    look()
  od;
  interrupted = false
}

inline copy_byte() {
  d_step {
    load(loaded, PAYLOAD(next));
    assert(loaded == next + 1);
    loaded = 0
  }
}

inline release_slot() {
  next++;
  store_consumed(next);
  d_step {
    load(loaded, WAKE_AT);
    asked = (loaded == next);
    loaded = 0
  }
  if
  :: asked -> asked = false; wake(SEAT_GATE)
  :: else
  fi
}

active [2] proctype reader() {
  byte next;
  byte ticket, word;
  bool readable, asked;
  bool interrupted;

  do
  :: next == FRAGMENTS -> break
  :: else ->
    wait_readable();
    if
    :: readable ->
      readable = false;
      copy_byte(); /* the memcpy: its first byte, */
      copy_byte(); /* and its last */
      release_slot()
    :: else /* interrupted: the caller calls again */
    fi
  od
}

/* ---- Store buffers empty themselves, so that whoever is stuck for good has an empty one ---- */

active proctype store_buffers() {
end:
  do
  :: flush(WRITER)
  :: flush(READER_A)
  :: flush(READER_B)
  od
}
