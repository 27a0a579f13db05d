/* The barrier of a hub and two members, who each pass some of them.
 *
 * Mirrors Barrier in core/hub/, and what it uses of core/wait/; comments name the C++ functions.
 * README.md says what is proven and what is left out. Memory, store buffers, the futex and the gate
 * are as in park_wake.pml.
 *
 * Everybody has a word that counts the barriers it has come to. Members park at one gate, the hub
 * at another. With DEATH, one member may die at any step, and the hub drops it when it looks.
 *
 * Each of these macros leaves a step out, and then somebody waits without end:
 *   NO_COMING_FENCE    enter, leave:  store the own word / load those of others, and the gates
 *   NO_PARKING_FENCE   wait:          announce at the gate / load the others' words
 *   WAKES_ONE_GATE     leave:         wakes the members, and not the hub
 *   LAST_ONE_WAKES     leave:         wakes nobody, unless it has found at once that all have come;
 *                                     who does may die of it before
 *   NO_EXCUSE          the hub:       stores nothing in the place of who was dropped
 */

#ifndef BARRIERS
#define BARRIERS 2
#endif
#define DEPTH 2 /* of a store buffer; a store into a full one waits */

/* Processes. */
#define MEMBER_A 0
#define MEMBER_B 1
#define HUB 2
#define PROCESSES 3

/* Addresses in shared memory. */
#define LOBBY_GATE 1
#define BELL 2
#define COME(process) (3 + (process)) /* 3, 4, 5 */
#define WORDS 6
#define NEVER 100 /* as the word of who was dropped */

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
StoreBuffer buffer[PROCESSES];

byte asleep_on[PROCESSES]; /* address of a gate; 0: awake */
byte entered[PROCESSES];   /* barriers that each has come to: what is proven, not how */
bool is_dead[PROCESSES];
bool is_doomed;  /* member B is about to be killed */
bool is_alarmed; /* the hub is, by the watch */

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

inline futex_wait(gate) {
  if
  :: d_step { drained && wake_ups(memory[gate]) == wake_ups(ticket) -> asleep_on[_pid] = gate }
    asleep_on[_pid] == 0
  :: drained && wake_ups(memory[gate]) != wake_ups(ticket)
  fi
}

inline announce(gate) {
  d_step {
    drained ->
    ticket = memory[gate];
    memory[gate] = ticket + 1
  }
}

inline announce_unfenced(gate) {
  d_step { load(ticket, gate) }
  store(ADD + gate, 1)
}

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

/* wake(): the load, then one locked step in place of compare-and-swaps that are repeated, and of the
 * system call: who dies between these two leaves the others asleep until their slice of 50 ms ends. */
inline wake(gate) {
  d_step { load(word, gate) }
  if
  :: d_step { announced(word) == 0 -> word = 0 }
  :: d_step {
      announced(word) > 0 && drained ->
      if
      :: announced(memory[gate]) > 0 ->
        memory[gate] = (wake_ups(memory[gate]) + 1) * WAKE_UP;
        assert(memory[gate] >= WAKE_UP);
        for (i : 0 .. PROCESSES - 1) {
          if
          :: asleep_on[i] == gate -> asleep_on[i] = 0
          :: else
          fi
        }
        i = 0
      :: else
      fi;
      word = 0
    }
  fi
}

/* ---- Which steps there are ---- */

#ifdef NO_COMING_FENCE
#define store_come(what) store(COME(_pid), what)
#else
#define store_come(what) exchange(COME(_pid), what)
#endif

#ifdef NO_PARKING_FENCE
#define announce_here(gate) announce_unfenced(gate)
#else
#define announce_here(gate) announce(gate)
#endif

/* ---- The barrier ---- */

/* all_have_come(): one word after the other; who was seen to have come need not be looked at. */
inline look() {
  do
  :: missing == PROCESSES -> break
  :: else ->
    d_step { load(loaded, COME(missing)); has_come = (loaded >= number); loaded = 0 }
    if
    :: has_come -> missing++
    :: else -> break
    fi
  od;
  has_come = false
}

inline wake_all() {
  wake(LOBBY_GATE);
#ifndef WAKES_ONE_GATE
  wake(BELL)
#endif
}

/* excuse_dropped() of the hub, once it has handled the alarm: of the members, B alone may die. */
inline excuse_dropped() {
  if
  :: _pid == HUB && is_dead[MEMBER_B] ->
    is_alarmed = false;
#ifndef NO_EXCUSE
    d_step { load(loaded, COME(MEMBER_B)); has_come = (loaded >= number); loaded = 0 }
    if
    :: has_come
    :: else ->
      exchange(COME(MEMBER_B), NEVER)
    fi;
    has_come = false
#endif
  :: else
  fi
}

#define my_gate (_pid == HUB -> BELL : LOBBY_GATE)

inline pass_barrier() {
  number++;
  missing = 0;
  d_step { entered[_pid]++ }
  store_come(number); /* enter() */
  look();
#ifdef LAST_ONE_WAKES
  is_last = (missing == PROCESSES);
#endif
  do
  :: missing == PROCESSES -> break
  :: else ->
    excuse_dropped();
    look();
    if
    :: missing == PROCESSES
    :: else ->
      announce_here(my_gate);
      look();
      if
      :: missing == PROCESSES || (_pid == HUB && is_alarmed) /* ready() or stop() */
      :: else -> futex_wait(my_gate)
      fi;
      withdraw(my_gate)
    fi
  od;
#ifdef LAST_ONE_WAKES
  if
  :: is_last -> wake_all()
  :: else
  fi;
  is_last = false;
#else
  wake_all(); /* leave() */
#endif
  /* Nobody is past it before all who live have come. */
  assert(entered[MEMBER_A] >= number || is_dead[MEMBER_A]);
  assert(entered[MEMBER_B] >= number || is_dead[MEMBER_B]);
  assert(entered[HUB] >= number)
}

active [PROCESSES] proctype participant() {
  byte number, missing, ticket, word;
  bool has_come;
#ifdef LAST_ONE_WAKES
  bool is_last;
#endif

  {
    do
    :: number == BARRIERS -> break
    :: else -> pass_barrier()
    od
  }
#ifdef DEATH
  unless {
    atomic {
      _pid == MEMBER_B && is_doomed && !is_dead[MEMBER_B] -> /* killed: asleep or awake */
      is_dead[MEMBER_B] = true;
      asleep_on[MEMBER_B] = 0
    }
    /* alarm() of the watch's thread, which then wakes the hub's gate. */
    d_step {
      is_alarmed = true;
      memory[BELL] = (announced(memory[BELL]) > 0
        -> (wake_ups(memory[BELL]) + 1) * WAKE_UP : memory[BELL]);
      if
      :: asleep_on[HUB] == BELL -> asleep_on[HUB] = 0
      :: else
      fi
    }
  }
#endif
}

#ifdef DEATH
active proctype killer() {
  is_doomed = true
}
#endif

/* ---- Store buffers empty themselves, so that whoever is stuck for good has an empty one ---- */

active proctype store_buffers() {
end:
  do
  :: flush(MEMBER_A)
  :: flush(MEMBER_B)
  :: flush(HUB)
  od
}
