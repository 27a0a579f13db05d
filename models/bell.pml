/* A hub's one gate, the bell, between its receiving thread, its sending thread and two members.
 *
 * Mirrors PyHub and PyHubWriter in core/bindings/, and what they use of core/wait/ and core/ring/;
 * inlines and comments name the C++ functions. README.md says what is proven and what is left out.
 * Memory, store buffers, the futex and the gate are as in park_wake.pml.
 *
 * The ring of messages and each ring of replies have one slot, and each of these has a reply in it.
 * A member takes a message, then replies: it waits for room, and takes no further message meanwhile.
 * The receiving thread takes some replies, and the others once everything was sent; meanwhile the
 * sending one must make room. With AWAITS_ANOTHER, the former waits for another member until then,
 * and must make room itself.
 *
 * Each of these macros leaves one fence out, and then somebody waits without end:
 *   NO_MEMBER_FENCE    reply:           store seq / load the bell
 *   NO_HUB_FENCE       receive:         announce at the bell / load seq of each ring
 *   NO_NEED_FENCE      send, parking:   store "room is needed" / load the bell
 *   NO_TURN_FENCE      end of receive:  store "nobody receives" / load "room is needed"
 * and so does NO_RELIEF: a send that waits for room and takes no replies out of the rings.
 */

#ifndef MESSAGES
#define MESSAGES 2
#endif
#ifndef MEMBERS
#define MEMBERS 2
#endif
#ifndef RECEIVED
#define RECEIVED 1 /* replies that the receiving thread asks for before it does other things */
#endif
#define DEPTH 3 /* of a store buffer; a store into a full one waits */

/* Processes. */
#define SENDER 0
#define RECEIVER 1
#define MEMBER_A 2
#define MEMBER_B 3
#define PROCESSES 4

/* Addresses in shared memory. */
#define BELL 1
#define LOBBY_GATE 2
#define SEAT_GATE(member) (1 + (member)) /* 3, 4 */
#define SENT 5
#define TAKEN(member) (4 + (member))   /* 6, 7 */
#define REPLIED(member) (6 + (member)) /* 8, 9: seq of the ring's slot, less 1: a reply is there */
#define EMPTIED(member) (8 + (member)) /* 10, 11: consumed */
#define BUSY 12                        /* somebody receives */
#define NEEDED 13                      /* room is needed */
#define WORDS 14

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
byte queued;               /* replies taken before anybody asked for them; whose turn it is has them */

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

inline futex_wake(gate) {
  d_step {
    for (i : 0 .. PROCESSES - 1) {
      if
      :: asleep_on[i] == gate -> asleep_on[i] = 0
      :: else
      fi
    }
    i = 0
  }
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

/* wake(): the load, then one locked step in place of compare-and-swaps that are repeated. */
inline wake(gate) {
  d_step { load(word, gate) }
  if
  :: d_step { announced(word) == 0 -> word = 0 }
  :: d_step {
      announced(word) > 0 && drained ->
      word = (announced(memory[gate]) > 0 -> wake_ups(memory[gate]) + 1 : 0);
      if
      :: word > 0 -> memory[gate] = word * WAKE_UP; assert(memory[gate] >= WAKE_UP)
      :: else
      fi
    }
    if
    :: word > 0 -> futex_wake(gate)
    :: else
    fi;
    word = 0
  fi
}

/* ---- Which fences there are ---- */

#ifdef NO_MEMBER_FENCE
#define store_replied(what) store(REPLIED(_pid), what)
#else
#define store_replied(what) exchange(REPLIED(_pid), what)
#endif

#ifdef NO_HUB_FENCE
#define announce_receiver() announce_unfenced(BELL)
#else
#define announce_receiver() announce(BELL)
#endif

#ifdef NO_NEED_FENCE
#define store_needed(what) store(NEEDED, what)
#else
#define store_needed(what) exchange(NEEDED, what)
#endif

#ifdef NO_TURN_FENCE
#define store_idle() store(BUSY, 0)
#else
#define store_idle() exchange(BUSY, 0)
#endif

/* ---- The hub ---- */

/* is_anything_there(): a look at each ring. */
inline look_at_rings() {
  d_step {
    load(loaded, REPLIED(MEMBER_A));
    word = loaded + 1;
    load(loaded, EMPTIED(MEMBER_A));
    is_there = (word != loaded);
    word = 0;
    loaded = 0
  }
#if MEMBERS > 1
  if
  :: is_there
  :: else ->
    d_step {
      load(loaded, REPLIED(MEMBER_B));
      word = loaded + 1;
      load(loaded, EMPTIED(MEMBER_B));
      is_there = (word != loaded);
      word = 0;
      loaded = 0
    }
  fi
#endif
}

/* take(): of the ring of a member, if there is a reply; then its writer is woken. */
inline take(member) {
  d_step {
    load(loaded, REPLIED(member));
    word = loaded + 1;
    load(loaded, EMPTIED(member));
    is_there = (word != loaded);
    word = 0;
    loaded = 0
  }
  if
  :: is_there ->
    d_step { drained -> memory[EMPTIED(member)] = memory[REPLIED(member)] + 1; queued++ }
    wake(SEAT_GATE(member))
  :: else
  fi;
  is_there = false
}

inline take_all() {
  take(MEMBER_A);
#if MEMBERS > 1
  take(MEMBER_B)
#endif
}

/* publish() of every message. */
active proctype sender() {
  byte sent, ticket, word;
  bool is_there, has_credit, is_due, is_busy;

  do
  :: sent == MESSAGES -> break
  :: else ->
    do
    :: /* has_credit(): both have taken what was sent */
      d_step {
        load(loaded, TAKEN(MEMBER_A));
        has_credit = (loaded == sent);
#if MEMBERS > 1
        load(loaded, TAKEN(MEMBER_B));
        has_credit = has_credit && loaded == sent;
#endif
        loaded = 0
      }
      if
      :: has_credit -> break
      :: else
      fi;
      /* PyHubWriter::advance() */
      store_needed(1);
      d_step { load(loaded, BUSY); is_busy = loaded; loaded = 0 }
      if
      :: is_busy -> wake(BELL)
      :: else
      fi;
      announce(BELL);
      d_step {
        load(loaded, TAKEN(MEMBER_A));
        has_credit = (loaded == sent);
#if MEMBERS > 1
        load(loaded, TAKEN(MEMBER_B));
        has_credit = has_credit && loaded == sent;
#endif
        loaded = 0
      }
      /* is_due(): nobody receives, and there is something */
      d_step { load(loaded, BUSY); is_busy = loaded; loaded = 0 }
      is_due = false;
#ifndef NO_RELIEF
      if
      :: !is_busy -> look_at_rings(); is_due = is_there; is_there = false
      :: else
      fi;
#endif
      if
      :: has_credit || is_due
      :: else -> futex_wait(BELL)
      fi;
      withdraw(BELL);
      store_needed(0);
      if
      :: is_due && !has_credit ->
        /* relieve(): the turn, unless a thread receives */
        d_step { drained -> is_busy = memory[BUSY]; memory[BUSY] = 1 }
        if
        :: !is_busy -> take_all(); exchange(BUSY, 0)
        :: else
        fi
      :: else
      fi;
      has_credit = false;
      is_due = false;
      is_busy = false
    od;
    has_credit = false;
    sent++;
    exchange(SENT, sent);
    wake(LOBBY_GATE)
  od
#ifdef AWAITS_ANOTHER
  ; wake(BELL) /* as the member that is awaited does */
#endif
}

/* ~Turn() */
inline end_turn() {
  is_there = false;
  store_idle();
  d_step { load(loaded, NEEDED); is_needed = loaded; loaded = 0 }
  if
  :: is_needed -> is_needed = false; wake(BELL)
  :: else
  fi
}

/* receive_of() another member than these, which replies once everything was sent. */
inline receive_of_another() {
  d_step { drained && memory[BUSY] == 0 -> memory[BUSY] = 1 }
  do
  :: d_step { load(loaded, SENT); is_there = (loaded == MESSAGES); loaded = 0 }
    if
    :: is_there -> break
    :: else
    fi;
    announce(BELL);
    d_step { load(loaded, SENT); is_there = (loaded == MESSAGES); loaded = 0 } /* is_ready() */
    if
    :: is_there
    :: else ->
      d_step { load(loaded, NEEDED); is_needed = loaded; loaded = 0 }
      if
      :: is_needed -> look_at_rings()
      :: else
      fi
    fi;
    if
    :: is_there
    :: else -> futex_wait(BELL)
    fi;
    withdraw(BELL);
    d_step { load(loaded, NEEDED); is_needed = loaded; loaded = 0 } /* await() */
    if
    :: is_needed -> take_all()
    :: else
    fi
  od;
  end_turn()
}

/* receive_any(), some times. */
active proctype receiver() {
  byte received, ticket, word;
  bool is_there, is_needed;

#ifdef AWAITS_ANOTHER
  receive_of_another();
#endif
  do
  :: received == MEMBERS * (MESSAGES + 1) -> break
  :: else ->
    if /* does other things, until everything was sent */
    :: received != RECEIVED || memory[SENT] == MESSAGES
    fi;
    /* Turn: waits for one that relieves */
    d_step { drained && memory[BUSY] == 0 -> memory[BUSY] = 1 }
    do
    :: queued > 0 -> queued--; received++; break
    :: else ->
      take_all();
      if
      :: queued == 0 ->
        announce_receiver();
        look_at_rings(); /* the second look, is_ready() */
        if
        :: is_there -> is_there = false
        :: else -> futex_wait(BELL)
        fi;
        withdraw(BELL)
      :: else
      fi
    od;
    end_turn()
  od
}

/* ---- Members ---- */

active [MEMBERS] proctype member() {
  byte taken, ticket, word;
  byte replied = 1;
  bool is_ready;

  do
  :: taken == MESSAGES -> break
  :: else ->
    do /* recv() */
    :: d_step { load(loaded, SENT); is_ready = (loaded > taken); loaded = 0 }
      if
      :: is_ready -> break
      :: else
      fi;
      announce(LOBBY_GATE);
      d_step { load(loaded, SENT); is_ready = (loaded > taken); loaded = 0 }
      if
      :: is_ready
      :: else -> futex_wait(LOBBY_GATE)
      fi;
      withdraw(LOBBY_GATE)
    od;
    taken++;
    exchange(TAKEN(_pid), taken);
    wake(BELL);
    do /* reply(): its ring has one slot */
    :: d_step { load(loaded, EMPTIED(_pid)); is_ready = (loaded == replied); loaded = 0 }
      if
      :: is_ready -> break
      :: else
      fi;
      announce(SEAT_GATE(_pid));
      d_step { load(loaded, EMPTIED(_pid)); is_ready = (loaded == replied); loaded = 0 }
      if
      :: is_ready
      :: else -> futex_wait(SEAT_GATE(_pid))
      fi;
      withdraw(SEAT_GATE(_pid))
    od;
    replied++;
    store_replied(replied - 1);
    wake(BELL)
  od
}

/* ---- Store buffers empty themselves, so that whoever is stuck for good has an empty one ---- */

active proctype store_buffers() {
end:
  do
  :: flush(SENDER)
  :: flush(RECEIVER)
  :: flush(MEMBER_A)
  :: flush(MEMBER_B)
  od
}
