/* A loop that awaits a byte at the gate where others park: arming, and who stands in for a writer
 * that can't write the byte.
 *
 * Mirrors Gate, Listener and Ringer in core/wait/, wake_readers() in core/ring/ and
 * PyRingReader::look() in core/bindings/; inlines and comments name the C++ functions. README.md
 * says what is proven and what is left out. Memory, store buffers, the futex and the gate are as in
 * park_wake.pml. The ring has room for everything.
 *
 * Reader A parks, reader B's tasks await. With BOTH_AWAIT, A's do, too. A task may be cancelled,
 * CANCELS times in all. With REFUSED, the writer can't open B's pipe, and a thread stands in.
 *
 * Each of these macros leaves one step out, and then somebody waits without end:
 *   NO_WRITER_FENCE    publish_fragment():  store seq / load the gate
 *   NO_ARM_FENCE       look():              arm the gate / load seq
 *   LOOK_BEFORE_ARM    look():              arm, then look
 *   ARM_GATE_FIRST     arm():               the doorbell before the gate
 *   DRAIN_AFTER_ARM    the loop's callback: drain, then arm
 *   SILENT_DISARMS     wake():              whoever has no news leaves loops armed
 *   STAND_IN_LOOKS_NOT stand_in():          compare the wake-ups with those at arm()
 */

#ifndef FRAGMENTS
#define FRAGMENTS 3
#endif
#ifndef CANCELS
#define CANCELS 1
#endif
#define DEPTH 3 /* of a store buffer; a store into a full one waits */

/* Processes. */
#define WRITER 0
#define READER_A 1
#define READER_B 2
#define STAND_IN 3
#define PROCESSES 4

/* Addresses in shared memory; the last two are B's process's own. */
#define GATE 1
#define ARMED(reader) (1 + (reader)) /* 2, 3: Doorbell::armed */
#define SENT 4                       /* fragments of which seq is stored */
#define ARMED_AT 5                   /* Listener::armed_at_: UNARMED, or wake-ups and 1 */
#define WORDS 6

/* A gate's word: a count of who has announced, the bit of armed loops, a count of wake-ups. */
#define ARMED_BIT 4
#define WAKE_UP 8
#define announced(word) ((word) % ARMED_BIT)
#define is_armed(word) (((word) / ARMED_BIT) % 2)
#define wake_ups(word) ((word) / WAKE_UP)
#define UNARMED 0

byte memory[WORDS];
bool pipe[PROCESSES]; /* a byte is in the pipe of a reader */

typedef StoreBuffer {
  byte count;
  byte address[DEPTH];
  byte value[DEPTH]
};
#define ADD 128 /* in an address: flushed as an addition */
StoreBuffer buffer[PROCESSES];

byte asleep_on[PROCESSES]; /* address of a gate; 0: awake */
byte cancels;

byte i, loaded; /* scratch within a step */

/* ---- Memory, futex and gate: see park_wake.pml ---- */

#define drained (buffer[_pid].count == 0)

inline store(to, what) {
  d_step {
    buffer[_pid].count < DEPTH ->
    buffer[_pid].address[buffer[_pid].count] = to;
    buffer[_pid].value[buffer[_pid].count] = what;
    buffer[_pid].count++
  }
}

inline exchange(to, what) {
  d_step {
    drained ->
    memory[to] = what
  }
}

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
    :: else -> memory[oldest - ADD] = memory[oldest - ADD] + buffer[process].value[0]
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

inline futex_wait() {
  if
  :: d_step { drained && wake_ups(memory[GATE]) == wake_ups(ticket) -> asleep_on[_pid] = GATE }
    asleep_on[_pid] == 0
  :: drained && wake_ups(memory[GATE]) != wake_ups(ticket)
  fi
}

inline futex_wake() {
  d_step {
    for (i : 0 .. PROCESSES - 1) { asleep_on[i] = 0 }
    i = 0
  }
}

inline announce() {
  d_step {
    drained ->
    ticket = memory[GATE];
    memory[GATE] = ticket + 1;
    assert(announced(memory[GATE]) > 0)
  }
}

inline withdraw() {
  d_step {
    drained ->
    if
    :: wake_ups(memory[GATE]) == wake_ups(ticket) ->
      assert(announced(memory[GATE]) > 0);
      memory[GATE] = memory[GATE] - 1
    :: else
    fi;
    ticket = 0
  }
}

/* Ringer::ring() */
inline ring(reader) {
  d_step {
    drained ->
    word = memory[ARMED(reader)];
    memory[ARMED(reader)] = 0
  }
#ifdef REFUSED
  word = 0;
#else
  if
  :: d_step { word == 1 -> pipe[reader] = true; word = 0 }
  :: else
  fi
#endif
}

/* wake_readers(): the load, then one locked step in place of compare-and-swaps. */
inline wake_readers() {
  d_step { load(word, GATE) }
  if
  :: d_step { word % WAKE_UP == 0 -> word = 0 }
  :: d_step {
      word % WAKE_UP > 0 && drained ->
      word = memory[GATE];
      if
      :: word % WAKE_UP > 0 -> memory[GATE] = (wake_ups(word) + 1) * WAKE_UP
      :: else
      fi
    }
    if
    :: announced(word) > 0 -> futex_wake()
    :: else
    fi;
    if
    :: is_armed(word) ->
      ring(READER_A);
      ring(READER_B)
    :: else
    fi;
    word = 0
  fi
}

/* wake(), by whoever has no news for loops. */
inline wake_silently() {
  d_step {
    drained ->
    word = memory[GATE];
    if
    :: announced(word) > 0 ->
      memory[GATE] = (wake_ups(word) + 1) * WAKE_UP;
#ifndef SILENT_DISARMS
      memory[GATE] = memory[GATE] + is_armed(word) * ARMED_BIT
#endif
    :: else -> word = 0
    fi
  }
  if
  :: word > 0 -> futex_wake(); word = 0
  :: else
  fi
}

/* ---- Which steps there are ---- */

#ifdef NO_WRITER_FENCE
#define store_sent(what) store(SENT, what)
#else
#define store_sent(what) exchange(SENT, what)
#endif

/* Gate::arm() */
inline arm_gate() {
#ifdef NO_ARM_FENCE
  d_step {
    load(loaded, GATE);
    word = (is_armed(loaded) -> 0 : ARMED_BIT);
    at = wake_ups(loaded);
    loaded = 0
  }
  store(ADD + GATE, word);
  word = 0
#else
  d_step {
    drained ->
    at = wake_ups(memory[GATE]);
    memory[GATE] = (is_armed(memory[GATE]) -> memory[GATE] : memory[GATE] + ARMED_BIT)
  }
#endif
}

/* Listener::arm() */
inline arm() {
#ifdef ARM_GATE_FIRST
  arm_gate();
  exchange(ARMED(_pid), 1);
#else
#ifdef NO_ARM_FENCE
  store(ARMED(_pid), 1);
#else
  exchange(ARMED(_pid), 1);
#endif
  arm_gate();
#endif
#ifdef REFUSED
  exchange(ARMED_AT, at * 2 + 1);
#endif
  at = 0
}

/* ---- The writer ---- */

active proctype writer() {
  byte sent, word;

  do
  :: sent == FRAGMENTS -> break
  :: else ->
    sent++;
    store_sent(sent);
    wake_readers()
  od
}

/* ---- Readers ---- */

inline look() {
  d_step { load(loaded, SENT); is_ready = (loaded > received); loaded = 0 }
}

/* wait_readable() of a thread. */
inline receive_parked() {
  do
  :: look();
    if
    :: is_ready -> break
    :: else
    fi;
    announce();
    look();
    if
    :: is_ready
    :: else -> futex_wait()
    fi;
    withdraw()
  od
}

/* recv_async(), in tasks of which some are cancelled. */
inline receive_awaiting() {
  do
#ifdef LOOK_BEFORE_ARM
  :: look();
    if
    :: is_ready -> break
    :: else
    fi;
    arm();
#else
  :: arm();
#ifdef DRAIN_AFTER_ARM
    pipe[_pid] = false;
#endif
    look();
    if
    :: is_ready -> break
    :: else
    fi;
#endif
    if
    :: d_step { drained && pipe[_pid] -> skip }
#ifndef DRAIN_AFTER_ARM
      pipe[_pid] = false
#endif
    :: d_step { cancels < CANCELS -> cancels++ }
      store(ARMED(_pid), 0) /* disarm(); the next task looks */
    fi
  od
}

active proctype reader_a() {
  byte received, ticket, word, at;
  bool is_ready;

  do
  :: received == FRAGMENTS -> break
  :: else ->
#ifdef BOTH_AWAIT
    receive_awaiting();
#else
    receive_parked();
#endif
    is_ready = false;
    received++
  od
}

active proctype reader_b() {
  byte received, ticket, word, at;
  bool is_ready;

  do
  :: received == FRAGMENTS -> break
  :: else ->
    receive_awaiting();
    is_ready = false;
    received++
  od
}

/* Listener::stand_in() of B; otherwise an interrupt() of A at any time. */
active proctype stand_in() {
  byte ticket, armed, word;
  bool is_rung;

#ifndef REFUSED
  wake_silently()
#else
end:
  do
  :: d_step { drained && memory[ARMED_AT] != UNARMED -> armed = memory[ARMED_AT] }
    announce();
    is_rung = (wake_ups(ticket) != armed / 2);
#ifdef STAND_IN_LOOKS_NOT
    is_rung = false;
#endif
    if
    :: !is_rung && memory[ARMED_AT] == armed ->
      if
      :: d_step { drained && wake_ups(memory[GATE]) == wake_ups(ticket) -> asleep_on[_pid] = GATE }
end_asleep:
        asleep_on[_pid] == 0
      :: drained && wake_ups(memory[GATE]) != wake_ups(ticket)
      fi
#ifdef STAND_IN_LOOKS_NOT
      ; is_rung = true
#endif
    :: else
    fi;
    withdraw();
    if
    :: is_rung ->
      d_step {
        if
        :: memory[ARMED_AT] == armed -> memory[ARMED_AT] = UNARMED; pipe[READER_B] = true
        :: else
        fi
      }
    :: else
    fi;
    is_rung = false;
    armed = 0
  od
#endif
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
