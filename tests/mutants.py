"""The mutants of mutate.py: changes that break one promise each, and the tests that hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One change of the source."""

    name: str
    file: str
    snippet: str
    """Stands in the file exactly once."""
    replacement: str
    promise: str
    """The promise that the change breaks."""
    tests: tuple[str, ...]
    """Each of them must fail, in at least one of its parameters."""


MUTANTS = (
    # The engine
    Mutant(
        "run-echo-refuse-binary",
        "uring_shim/engine.c",
        "(first == BINARY && !rules->refuse_binary)",
        "(first == BINARY)",
        "`refuse_binary` holds for `run_echo` too",
        ("tests/test_limits.py::test_a_type_of_message_may_be_refused",),
    ),
    Mutant(
        "run-echo-message-limit",
        "uring_shim/engine.c",
        "const size_t bytes_max = urs_min(rules->message_bytes_max, URS_FRAME_CONTROL_BYTES_MAX);",
        "const size_t bytes_max = URS_FRAME_CONTROL_BYTES_MAX;",
        "`message_bytes_max` holds for `run_echo` too",
        ("tests/test_limits.py::test_message_bytes_max_is_the_size_of_the_largest_message",),
    ),
    Mutant(
        "frames-continuation-utf8",
        "uring_shim/engine.c",
        "int error = accept_payload(engine, message_opcode, payload, bytes, header->fin);",
        "int error = accept_payload(engine, header->opcode, payload, bytes, header->fin);",
        "Text is valid UTF-8 in every fragment that `on_frame` is given",
        ("tests/test_messages.py::test_text_is_utf8_in_every_fragment",),
    ),
    Mutant(
        "feed-forgets-held-input",
        "uring_shim/fast_engine.c",
        "memcpy(core->held, chunk->input.next, bytes);",
        "memcpy(core->held, chunk->input.end - bytes + 1, bytes - 1);",
        "`feed` goes on in the middle of a chunk",
        ("tests/test_engine_feed.py::test_feeding_stops_in_the_middle_of_a_chunk",),
    ),
    Mutant(
        "feed-pongs-after-close",
        "uring_shim/fast_engine.c",
        "return core->close_sent || reply_frame(events, URS_OPCODE_PONG, item->payload, item->bytes);",
        "return reply_frame(events, URS_OPCODE_PONG, item->payload, item->bytes);",
        "No frame follows our close frame",
        ("tests/test_engine_feed.py::test_messages_after_our_close_are_given_and_pings_are_not_answered",),
    ),
    Mutant(
        "feed-keeps-large-blocks",
        "uring_shim/fast_engine.c",
        "if (core->memory.cached_bytes > CACHED_BYTES_MAX)",
        "if (false)",
        "An engine keeps no large block after a large message",
        ("tests/test_engine_feed.py::test_no_large_block_is_kept_after_a_large_message",),
    ),
    # The opening request
    Mutant(
        "head-limit-off-by-one",
        "uring_shim/head.c",
        "if (have > rules->bytes_max)",
        "if (have >= rules->bytes_max)",
        "A head of exactly `header_bytes_max` is taken",
        ("tests/test_limits.py::test_header_bytes_max_is_the_size_of_the_largest_head",),
    ),
    Mutant(
        "bare-lf-waits",
        "uring_shim/head.c",
        "        if (line_feed == head || line_feed[-1] != '\\r')\n            return false;\n",
        "",
        "A head with a bare LF is refused at once",
        ("tests/test_upgrades.py::test_bytes_that_cannot_begin_a_request_are_refused_at_once",),
    ),
    Mutant(
        "banner-waits",
        "uring_shim/head.c",
        "if (!names_http(head, (size_t)(line_feed - head) + 1))",
        "if (false)",
        "A first line that is not HTTP's is refused at once",
        ("tests/test_upgrades.py::test_bytes_that_cannot_begin_a_request_are_refused_at_once",),
    ),
    Mutant(
        "empty-line-after-proxy-v1",
        "uring_shim/head.c",
        "return (size_t)(end - data) + 2;",
        "return 0;",
        "One empty line between a PROXY header and the request is ignored",
        ("tests/test_upgrades.py::test_one_empty_line_before_the_request_is_ignored",),
    ),
    Mutant(
        "default-port-differs",
        "src/uringws/http.py",
        'port = (authority["port"] or default_port).lstrip(b"0")',
        'port = (authority["port"] or b"").lstrip(b"0")',
        "A target and a Host that differ in the default port alone are equivalent",
        ("tests/test_handshake.py::test_a_target_and_a_host_that_mean_the_same_authority",),
    ),
    Mutant(
        "zone-in-host",
        "src/uringws/http.py",
        'if host["zone"] is not None:',
        "if False:",
        "The zone of a link-local address is taken out of Host",
        ("tests/test_handshake.py::test_a_zone_means_nothing_here_and_is_taken_from_host",),
    ),
    Mutant(
        "two-dates",
        "src/uringws/http.py",
        "if not _DATED.search(lines):",
        "if lines is not None:",
        "A Date of the handler's own stands alone",
        ("tests/test_handshake.py::test_a_date_given_by_the_handler_replaces_ours",),
    ),
    Mutant(
        "refusal-of-yesterday",
        "uring_shim/admission.c",
        "if (answer->date_at != 0)",
        "if (false)",
        "The answers that the shim gives by itself have the Date of their moment",
        ("tests/test_admission.py::test_an_answer_has_the_date_of_its_moment",),
    ),
    Mutant(
        "file-for-a-stale-socket",
        "src/uringws/sockets.py",
        "if not stat.S_ISSOCK(os.lstat(path).st_mode):",
        "if not os.lstat(path):",
        "`bind_unix` never removes a file",
        ("tests/test_unix_sockets.py::test_other_files_at_the_path_are_never_removed",),
    ),
    Mutant(
        "mapped-peer",
        "uring_shim/peers.c",
        "bool is_mapped = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);",
        "bool is_mapped = false;",
        "An IPv4 peer has its plain address on a socket for both families",
        ("tests/test_admission.py::test_a_peer_has_its_plain_address_on_a_socket_for_both_families",),
    ),
    # Turns and fairness
    Mutant(
        "session-fills-a-turn",
        "uring_shim/feed.c",
        "(uint32_t)urs_min(first + share, URS_MESSAGES_MAX)",
        "URS_MESSAGES_MAX",
        "One session's messages never fill a turn",
        ("tests/test_fairness.py::test_a_flood_of_tiny_messages_gets_at_most_its_share_of_each_turn",),
    ),
    Mutant(
        "held-input-fills-a-turn",
        "uring_shim/feed.c",
        "while (done < count && reactor->event_count < URS_MESSAGES_MAX / 2)",
        "while (done < count && reactor->event_count < URS_MESSAGES_MAX)",
        "Held input leaves half of each turn to what has come since",
        ("tests/test_fairness.py::test_held_floods_leave_room_for_newer_input",),
    ),
    # Backlogs
    Mutant(
        "echo-backlog-off-by-one",
        "uring_shim/gate.h",
        "header_bytes + bytes > rules->backlog_bytes_max",
        "header_bytes + bytes >= rules->backlog_bytes_max",
        "An echo may fill the backlog to `backlog_bytes_max`",
        ("tests/test_backpressure.py::test_an_echo_may_fill_the_backlog_but_not_exceed_it",),
    ),
    Mutant(
        "pongs-without-reserve",
        "uring_shim/gate.h",
        "[URS_OUTPUT_PONG] = {.limited = true, .header_counts = true, .reserve_bytes = URS_CONTROL_RESERVE_BYTES}",
        "[URS_OUTPUT_PONG] = {.limited = true, .header_counts = true}",
        "A full backlog still takes pongs",
        ("tests/test_backpressure.py::test_a_full_backlog_still_takes_a_pong",),
    ),
    Mutant(
        "pongs-without-bound",
        "uring_shim/gate.h",
        "return kind == URS_OUTPUT_PONG && many ? URS_GATE_LATEST : URS_GATE_OPEN;",
        "return URS_GATE_OPEN;",
        "While 16 pongs wait, only the latest ping is answered",
        ("tests/test_pongs.py::test_of_many_pings_that_wait_the_latest_is_answered",),
    ),
    Mutant(
        "keepalive-beyond-the-reserve",
        "uring_shim/upkeep.c",
        "if (urs_gate_check(session, rules, URS_OUTPUT_CONTROL, sizeof payload) != URS_GATE_OPEN)",
        "if (0)",
        "The reserve for control frames is a limit for pings too, to the byte",
        ("tests/test_core.py::test_case",),
    ),
    Mutant(
        "a-copy-for-each-slow-reader",
        "uring_shim/backlog.c",
        "segment->output ? bytes >= SHARED_BYTES_MIN : ",
        "",
        "A message that many sessions wait for is kept once",
        ("tests/test_core.py::test_case",),
    ),
    Mutant(
        "readers-end-for-what-they-share",
        "uring_shim/budget.c",
        "bool freed_suffices = scan.shares.bytes - scan.freed.bytes <= bytes_kept_max;",
        "bool freed_suffices = false;",
        "No session is ended for memory that its end would not free while others hold enough",
        ("tests/test_core.py::test_case",),
    ),
    Mutant(
        "backlog-pauses-each-64-blocks",
        "uring_shim/flush.c",
        "else if ((uint32_t)sent == session->in_flight_bytes)\n        urs_work_dirty(reactor, session);\n    else\n",
        "else\n",
        "A backlog leaves at once for as long as the socket takes it",
        ("tests/test_core.py::test_case[a_backlog_of_many_slices_leaves_in_one_flush]",),
    ),
    Mutant(
        "messages-after-on-full-close",
        "src/uringws/connection.py",
        """if result == SendResult.DROPPED and not self.is_open:  # on_full="close"
            self._turn._begin_closing(self, self.closing or Closing())
        return""",
        "return",
        'No message is delivered after `on_full="close"` has struck',
        ("tests/test_backpressure.py::test_on_full_close_delivers_no_more_messages_of_the_same_turn_either",),
    ),
    # Fragmented sends
    Mutant(
        "messages-inside-fragmented-ones",
        "uring_shim/gate.h",
        "kind <= URS_OUTPUT_CONTINUATION && URS_UNLIKELY(session->unfinished !=",
        "kind > URS_OUTPUT_CLOSE && URS_UNLIKELY(session->unfinished !=",
        "No message is sent inside a fragmented one",
        (
            "tests/test_fragmented_sends.py::test_a_message_inside_a_fragmented_one_is_refused_and_nothing_of_it_sent",
            "tests/test_fragmented_sends.py::test_a_fragmented_message_that_begins_before_an_echo_leaves_closes_with_1011",
            "tests/test_fragmented_sends.py::test_run_echo_does_not_break_into_a_fragmented_message_of_a_sender",
        ),
    ),
    Mutant(
        "continuations-dropped",
        "uring_shim/command.c",
        "        || (rules->on_full == URS_ON_FULL_DROP && opcode == URS_OPCODE_CONTINUATION))\n",
        "        || false)\n",
        "No part of a message is dropped",
        ("tests/test_fragmented_sends.py::test_a_full_backlog_inside_a_fragmented_message",),
    ),
    # Requests that are answered later
    Mutant(
        "early-input-unbounded",
        "uring_shim/intake.c",
        "        return session->held.block == NULL || urs_slice_bytes(&session->held) < URS_EARLY_BYTES_MAX;\n",
        "        return true;\n",
        "A peer whose request is not answered yet is not read on and on",
        ("tests/test_later.py::test_a_peer_that_floods_before_the_answer_is_not_read_on",),
    ),
    Mutant(
        "deadline-abandons-silently",
        "uring_shim/admission.c",
        "    if (session->state == URS_SESSION_AWAIT_DECISION)\n"
        "        urs_work_event(reactor, session->slot, &(struct urs_item){.kind = URS_EVENT_ABANDONED});\n",
        "",
        "A handler is told of a request that cannot be answered any more",
        (
            "tests/test_later.py::test_the_handshake_deadline_still_counts",
            "tests/test_later.py::test_a_drain_answers_waiting_requests_503",
        ),
    ),
    Mutant(
        "second-answers-accepted",
        "src/uringws/deferred.py",
        "        if request.is_answered:\n            raise ReactorStateError(_ANSWERED)\n",
        "",
        "A request is answered once",
        ("tests/test_later.py::test_a_second_answer_raises",),
    ),
    # How a connection ended
    Mutant(
        "peer-closed-first-always",
        "src/uringws/closing.py",
        "    if so_far.sent is not None:\n        return replace(so_far, received=received)\n",
        "",
        "`closing` says which side closed first, and what it sent",
        ("tests/test_closing.py::test_a_server_that_closes_first",),
    ),
    Mutant(
        "abort-delivers-late-messages",
        "src/uringws/sessions.py",
        "            if aborted:\n                self.aborted.add(slot)\n",
        "",
        "Nothing is delivered after an abort",
        ("tests/test_late_messages.py::test_nothing_is_delivered_after_an_abort",),
    ),
    Mutant(
        "late-message-echoed",
        "src/uringws/dispatch.py",
        "        message._connection = None  # too late to echo it\n",
        "        message._connection = connection\n",
        "A message that comes after our close frame cannot be echoed",
        ("tests/test_late_messages.py::test_nothing_can_be_sent_from_a_late_message",),
    ),
    # The drain
    Mutant(
        "drain-leaves-ports-open",
        "src/uringws/reactor.py",
        "        self._listeners.close()  # otherwise the kernel would go on completing connections\n",
        "",
        "A drain closes the listening sockets at once",
        ("tests/test_draining.py::test_a_drain_closes_the_listening_sockets_while_sessions_last",),
    ),
    Mutant(
        "second-signal-ignored",
        "src/uringws/reactor.py",
        "            self._stop_requested = True\n        self._signal = number",
        "            pass\n        self._signal = number",
        "A second signal ends the reactor at once",
        ("tests/test_draining.py::test_a_second_signal_ends_a_drain_at_once",),
    ),
    Mutant(
        "draining-admits",
        "uring_shim/admission.c",
        "    if (reactor->draining || listener->state != URS_LISTENER_OPEN) {\n        refuse",
        "    if (listener->state != URS_LISTENER_OPEN) {\n        refuse",
        "Nobody is let in while draining",
        ("tests/test_draining.py::test_connections_accepted_but_not_seen_before_a_drain_are_refused",),
    ),
    # The end of a session
    Mutant(
        "closed-without-waiting",
        "uring_shim/lifecycle.c",
        "if (session->input_ended || urs_session_is_lost(session) || urs_sys_shutdown(session->fd, SHUT_WR) != 0)",
        "if (true)",
        "A peer that still sends is not reset before it has read the close frame",
        (
            "tests/test_farewell.py::test_a_peer_that_keeps_sending_after_the_end_still_reads_everything",
            "tests/test_farewell.py::test_a_refused_peer_that_keeps_sending_still_reads_the_answer",
        ),
    ),
    # Deadlines
    Mutant(
        "ping-clock-runs-in-the-queue",
        "uring_shim/upkeep.c",
        "bool queued = judged && urs_deadline_is_queued(session);",
        "bool queued = false;",
        "A ping behind other bytes is not an unanswered ping",
        ("tests/test_deadlines.py::test_a_ping_in_the_socket_after_a_large_message_has_not_reached_the_peer",),
    ),
    Mutant(
        "bytes-behind-the-ping-count",
        "uring_shim/upkeep.c",
        "if (acked - session->question_bytes < PASSED_BYTES_MAX)",
        "if (false)",
        "Bytes that were sent after a ping are no sign of life",
        ("tests/test_deadlines.py::test_a_peer_that_hangs_is_cut_while_its_kernel_takes_our_bytes",),
    ),
    Mutant(
        "silence-is-judged-before-reading",
        "uring_shim/upkeep.c",
        "if ((pong_due || idle_due) && input_waits(session))",
        "if (false && input_waits(session))",
        "What has arrived is read before a peer is called silent",
        (
            "tests/test_deadlines.py::test_input_that_came_while_the_server_stalled_counts_against_idleness",
            "tests/test_deadlines.py::test_pongs_that_came_while_the_server_stalled_count",
        ),
    ),
    Mutant(
        "state-is-judged-before-reading",
        "uring_shim/upkeep.c",
        "passed = !input_waits(session) || (passed && !first && session->receive_state != URS_RECEIVE_AWAITS_BUFFER);",
        "passed = true;",
        "What has arrived is read before a request or a close answer is called late",
        (
            "tests/test_deadlines.py::test_a_close_answered_while_the_server_stalled_is_in_order",
            "tests/test_deadlines.py::test_a_request_that_came_while_the_server_stalled_is_answered",
        ),
    ),
    Mutant(
        "reading-first-has-no-end",
        "uring_shim/upkeep.c",
        "passed = !input_waits(session) || (passed && !first && session->receive_state != URS_RECEIVE_AWAITS_BUFFER);",
        "passed = !input_waits(session);",
        "A peer that talks on after our close frame wins no time",
        ("tests/test_deadlines.py::test_a_peer_that_keeps_sending_after_our_close_frame_is_cut_too",),
    ),
    Mutant(
        "question-never-leaves",
        "uring_shim/lifecycle.c",
        "if (URS_UNLIKELY(session->question_unsent))",
        "if (false)",
        "A clock starts when the question has left, not when it was asked",
        (
            "tests/test_deadlines.py::test_a_close_frame_that_a_stall_keeps_back_is_waited_for_afterwards",
            "tests/test_deadlines.py::test_a_ping_that_a_stall_keeps_back_is_waited_for_afterwards",
        ),
    ),
    Mutant(
        "ending-by-drops",
        "uring_shim/upkeep.c",
        "look(session) >= urs_max(period / URS_LOOKS_PER_PERIOD, 1)",
        "look(session) > 0",
        "A session that ends is not kept by a peer that takes next to nothing",
        ("tests/test_deadlines.py::test_a_peer_that_reads_the_rest_in_small_pieces_is_cut_too",),
    ),
    Mutant(
        "idle-behind-a-backlog",
        "uring_shim/upkeep.c",
        "            session->taken = true;\n",
        "",
        "A peer that takes its backlog is not idle",
        ("tests/test_deadlines.py::test_a_peer_that_takes_its_backlog_is_alive",),
    ),
    Mutant(
        "cut-stream-ends-in-order",
        "uring_shim/io.c",
        "if (!reset || connect(fd, &unspecified, sizeof unspecified) != 0)",
        "if (!reset || sizeof unspecified != 0)",
        "A stream that is cut is reset and does not look whole",
        (
            "tests/test_deadlines.py::test_a_page_that_cannot_be_finished_is_reset_and_never_ended_as_if_it_were_whole",
            "tests/test_deadlines.py::test_a_stream_that_is_cut_is_reset",
        ),
    ),
    Mutant(
        "pings-in-step",
        "uring_shim/deadline.c",
        "(session->slot * SPREAD) >> 32);",
        "0 >> 32);",
        "Sessions that came together are pinged apart",
        ("tests/test_deadlines.py::test_sessions_that_came_together_are_pinged_apart_also_after_a_stall",),
    ),
    Mutant(
        "unread-request-gives-way",
        "uring_shim/admission.c",
        "if (urs_io_input_waiting(oldest->fd) == URS_INPUT_WAITS)",
        "if (false)",
        "A connection whose request waits to be read is not silent",
        ("tests/test_deadlines.py::test_a_request_that_waits_to_be_read_does_not_give_way",),
    ),
    Mutant(
        "busy-poll-delays-timers",
        "uring_shim/turn.c",
        "wait_ns > spun_ns ? wait_ns - spun_ns : 0;",
        "wait_ns;",
        "Busy polling does not delay a timer",
        ("tests/test_deadlines.py::test_session_seconds_max_holds_for_a_busy_poller_too",),
    ),
    # Other threads and processes
    Mutant(
        "waiting-senders-sleep-on",
        "src/uringws/commands.py",
        """                raise
        with self._changed:
            self._changed.notify_all()
""",
        """                raise
""",
        "A Sender that waits for room is woken when there is some",
        ("tests/test_sender.py::test_a_thread_that_waits_for_room_without_a_timeout_continues_when_there_is_room",),
    ),
    Mutant(
        "fork-keeps-locks",
        "src/uringws/core.py",
        "        self.renew_lock()  # the thread that held it is not in this process\n",
        "",
        "A child process does not hang on locks that threads of its parent held",
        ("tests/test_reactor.py::test_a_fork_does_not_hang_on_locks_of_other_threads",),
    ),
    # Admission
    Mutant(
        "strangers-beside-proxies-uncounted",
        "src/uringws/upgrade.py",
        "            self._set_proxied_peer(upgrade.identity, None)\n",
        "",
        "`sessions_per_ip_max` holds for peers that no trusted proxy stands before",
        ("tests/test_admission.py::test_sessions_per_ip_max_holds_for_strangers_beside_proxies",),
    ),
    # Slots and their next sessions
    Mutant(
        "slot-freed-before-its-last-event",
        "uring_shim/turn.c",
        " || session->late_events > 0)",
        ")",
        "An event of a session is never told of the next one in its slot",
        ("tests/test_turns.py::test_a_late_event_of_a_session_never_reaches_the_next_one_in_its_slot",),
    ),
    Mutant(
        "epoll-ends-a-receive-twice",
        "uring_shim/io_epoll.c",
        "    if ((watched->interest & EPOLLIN) == 0)\n        return 0;  /*",
        "    /*",
        "A receive has one last completion",
        ("tests/test_core.py::test_case[a_receive_ends_once]",),
    ),
    Mutant(
        "drain-sends-each-frame-alone",
        "uring_shim/reactor.c",
        "        (void)urs_flush_arena(reactor);",
        "        (void)(reactor->outbox.arena_bytes > URS_ARENA_FLUSH_BYTES ? urs_flush_sessions(reactor) : 0);",
        "A drain sends the close frames of many sessions together",
        ("tests/test_core.py::test_case[a_drain_keeps_its_memory_small]",),
    ),
    Mutant(
        "refused-cancel-is-forgotten",
        "uring_shim/intake.c",
        "session->unsure = reactor->resets_again = true;",
        "session->unsure = false;",
        "A reset that a receive missed is found, although the first cancel was refused",
        ("tests/test_core.py::test_case[a_refused_cancel_is_repeated]",),
    ),
    Mutant(
        "question-reached-by-overflow",
        "uring_shim/upkeep.c",
        "if (acked - session->question_bytes < PASSED_BYTES_MAX)",
        "if ((int32_t)(acked - session->question_bytes) >= 0)",
        "A pong is not due while gigabytes are in front of its ping",
        ("tests/test_core.py::test_case[a_question_may_wait_behind_gigabytes]",),
    ),
    Mutant(
        "unread-uses-up-the-reprieve",
        "uring_shim/upkeep.c",
        "&& unseen_input(session) != URS_INPUT_NONE;",
        "&& input_waits(urs_core_session(reactor, slot));",
        "Counting unread input changes nothing",
        ("tests/test_core.py::test_case[a_look_for_unread_input_changes_nothing]",),
    ),
    Mutant(
        "slot-freed-while-on-a-list",
        "uring_shim/turn.c",
        "if (session->lists != 0 || session->late_events > 0)",
        "if (session->late_events > 0)",
        "A slot that stands on a list is not given to another session",
        ("tests/test_faults.py::test_sessions_that_end_while_they_wait_for_a_shortage_to_pass_leave_no_trace",),
    ),
    # Faults and shortages
    Mutant(
        "receive-enomem-ends-session",
        "uring_shim/io.c",
        "    {ENOMEM, URS_FATE_LATER}, {ECANCELED, URS_FATE_STOPPED},\n};",
        "    {ECANCELED, URS_FATE_STOPPED},\n};",
        "A receive that finds no memory is tried again",
        ("tests/test_faults.py::test_a_receive_refused_for_now_loses_nothing",),
    ),
    Mutant(
        "send-enobufs-spins",
        "uring_shim/flush.c",
        "if (fate == URS_FATE_LATER\n        || reactor->io->operations->writable(",
        "if (reactor->io->operations->writable(",
        "A send that meets a shortage is tried again after a pause, not at once and again",
        ("tests/test_faults.py::test_a_send_that_meets_a_shortage_does_not_spin",),
    ),
    Mutant(
        "receive-not-cancelled-by-name",
        "uring_shim/upkeep.c",
        "        if (urs_session_is_receiving(session))\n            reactor->io->operations->receive_stop(",
        "        if (false)\n            reactor->io->operations->receive_stop(",
        "A request that outlasts its socket does not keep its session for ever",
        ("tests/test_faults.py::test_a_request_that_outlasts_its_socket_is_ended_by_name",),
    ),
    Mutant(
        "cut-drain-goes-on",
        "src/uringws/draining.py",
        "if core.state is RunState.CUT or not sessions:",
        "if not sessions:",
        "A drain that cut its sessions ends, whatever is left of them",
        ("tests/test_faults.py::test_a_drain_that_cut_ends_even_while_requests_last",),
    ),
    Mutant(
        "full-submission-queue-pauses",
        "uring_shim/io_uring.c",
        "        submit_all(uring);\n        sqe = io_uring_get_sqe(&uring->ring);",
        "        sqe = NULL;",
        "A full submission queue is submitted; no request waits for it",
        ("tests/test_shortages.py::test_a_full_submission_queue_delays_no_request",),
    ),
    Mutant(
        "buffer-lent-twice",
        "uring_shim/zero_copy.c",
        " || reactor->lent[buffer] != URS_LENT_NOT)",
        ")",
        "A buffer stays out of the pool until the kernel is done with all that was sent from it",
        ("tests/test_faults.py::test_a_buffer_is_not_given_back_while_the_kernel_still_sends_from_it",),
    ),
    Mutant(
        "large-message-put-aside",
        "uring_shim/feed.c",
        "|| (session->engine.phase == URS_ENGINE_AWAIT_PAYLOAD && bytes < session->engine.frame_left);",
        "|| false;",
        "The middle of a large message is copied once, not put aside first",
        ("tests/test_turns.py::test_the_middle_of_a_large_message_is_taken_in_and_not_put_aside",),
    ),
    Mutant(
        "session-not-adopted-while-draining",
        "uring_shim/reactor.c",
        "    if (reactor->draining\n        || (",
        "    if ((",
        "No socket is taken over while draining",
        ("tests/test_draining.py::test_no_socket_is_taken_over_while_draining",),
    ),
    Mutant(
        "adopted-prefix-waits",
        "uring_shim/lifecycle.c",
        """    if (session->held.block != NULL)
        urs_work_queue_feed(reactor, session);
    urs_intake_receive(reactor, session);
}

/* ---- ending""",
        "    urs_intake_receive(reactor, session);\n}\n\n/* ---- ending",
        "Bytes that came with an adopted socket are handled in the next turn",
        ("tests/test_adoption.py::test_on_open_comes_once_with_its_data_and_before_any_message",),
    ),
    Mutant(
        "timers-drift",
        "src/uringws/timers.py",
        "self._push(timer, due + (missed + 1) * timer._interval)",
        "self._push(timer, now + timer._interval)",
        "The delays of a repeated timer do not add up",
        ("tests/test_timers.py::test_the_delays_of_a_repeated_timer_do_not_add_up",),
    ),
    Mutant(
        "missed-timers-made-up",
        "src/uringws/timers.py",
        "missed = (now - due) // timer._interval",
        "missed = 0",
        "Calls that a busy reactor missed are left out",
        ("tests/test_timers.py::test_calls_that_a_busy_reactor_missed_are_not_made_up_for",),
    ),
    Mutant(
        "timer-set-by-timer-runs-at-once",
        "src/uringws/timers.py",
        "            if number > last:\n",
        "            if False:  # never\n",
        "A timer that sets itself again does not stop everything else",
        ("tests/test_timers.py::test_a_timer_that_is_added_by_another_waits_for_the_next_turn_however_soon_it_is_due",),
    ),
    Mutant(
        "forgotten-senders-count",
        "src/uringws/sender.py",
        """        if hasattr(self, "_key"):
            self._commands.remove_sender(self._key)
""",
        "        pass\n",
        "A Sender that was collected keeps no reactor running",
        ("tests/test_sender.py::test_a_sender_that_was_collected_keeps_no_reactor_running",),
    ),
    Mutant(
        "sender-reaches-next-session",
        "src/uringws/sessions.py",
        "return connection if connection is not None and connection.id == identity else None",
        "return connection",
        "An id never names another connection",
        ("tests/test_sender.py::test_a_session_that_is_gone_is_refused_even_when_its_slot_is_taken_again",),
    ),
    Mutant(
        "path-of-another-server-removed",
        "src/uringws/sockets.py",
        "if (found.st_dev, found.st_ino) == (self.device, self.inode):",
        "if True:",
        "A server removes its own Unix path only",
        ("tests/test_unix_sockets.py::test_a_new_server_takes_over_the_path_and_the_old_one_leaves_it_alone",),
    ),
    Mutant(
        "pause-still-reads",
        "uring_shim/lifecycle.c",
        "    urs_intake_receive(reactor, session);  /* this stops the armed receive */\n",
        "",
        "`pause_reading` stops taking bytes",
        ("tests/test_backpressure.py::test_a_pause_loses_nothing_and_bounds_memory",),
    ),
    Mutant(
        "heavy-sessions-unmarked",
        "uring_shim/intake.c",
        "bytes > reactor->pool.buffer_bytes / HEAVY_SHARE;",
        "false && bytes;",
        "Small messages do not wait for large ones where buffers are short",
        ("tests/test_crowds.py::test_a_lively_session_waits_for_few_of_the_large_senders",),
    ),
    Mutant(
        "heavy-sessions-starve",
        "uring_shim/intake.c",
        "uint32_t heavy_min = (uint32_t)urs_min(reactor->heavy.count, urs_max(1, room / HEAVY_PART_MIN));",
        "uint32_t heavy_min = 0;",
        "Large senders have a share beside talkative sessions",
        ("tests/test_crowds.py::test_large_senders_have_a_share_beside_talkative_ones",),
    ),
    Mutant(
        "last-come-first-served",
        "uring_shim/intake.c",
        """    session->next_slot = 0;
    if (queue->count == 0)
        queue->first = session->slot + 1;
    else
        urs_core_session(reactor, queue->last - 1)->next_slot = session->slot + 1;
    queue->last = session->slot + 1;""",
        "    session->next_slot = queue->count == 0 ? 0 : queue->first;\n    queue->first = session->slot + 1;",
        "Sessions that wait for a receive buffer have it in turn",
        ("tests/test_crowds.py::test_small_messages_do_not_wait_for_large_ones",),
    ),
    Mutant(
        "receives-before-their-buffers",
        "uring_shim/io_uring.c",
        "    publish(uring);  /* a receive that finds data takes its buffer during the submit */\n",
        "",
        "A receive finds the buffers that were given back before it",
        ("tests/test_crowds.py::test_small_messages_do_not_wait_for_large_ones",),
    ),
    Mutant(
        "crowds-unseen-by-epoll",
        "uring_shim/io_epoll.c",
        "watched->heavy = (size_t)got == epoll->io.pool->buffer_bytes;",
        "watched->heavy = false;",
        "On epoll, too, a neighbour waits for few of many large senders",
        ("tests/test_crowds.py::test_a_lively_session_waits_for_few_of_the_large_senders",),
    ),
    Mutant(
        "message-at-hand-moved",
        "uring_shim/apply.c",
        "if (URS_UNLIKELY(in_hand))",
        "if (false && in_hand)",
        "A message stays as it is while it is handled",
        (
            "tests/test_misuse.py::test_the_current_message_stays_unchanged_when_its_connection_is_closed_after_its_echo",
        ),
    ),
    Mutant(
        "mapped-address-counted-apart",
        "uring_shim/peers.c",
        "session->peer.family = is_mapped ? 4 : 6;",
        "session->peer.family = is_mapped ? 4 : 6;\n        session->peer.address[0] ^= is_mapped;",
        "An IPv4 peer has one address on every socket",
        ("tests/test_admission.py::test_a_peer_has_its_plain_address_on_a_socket_for_both_families",),
    ),
    # Deadlines
    Mutant(
        "second-ping",
        "uring_shim/upkeep.c",
        """    if (session->ping_sent_us != 0 && judged)
        return;
""",
        "",
        "One ping at a time decides about a session",
        ("tests/test_liveness.py::test_another_ping_gives_a_silent_peer_no_more_time",),
    ),
    Mutant(
        "clock-before-question",
        "uring_shim/deadline.c",
        """    session->question_queued = queued;
""",
        """    session->question_queued = false && queued;
""",
        "A clock that waits for an answer starts when the question has left",
        ("tests/test_deadlines.py::test_a_ping_in_the_socket_after_a_large_message_has_not_reached_the_peer",),
    ),
    Mutant(
        "progress-does-not-count",
        "uring_shim/upkeep.c",
        "return taken < UINT32_MAX - STEP_BACK_BYTES_MAX ? taken : 0;",
        "return taken < UINT32_MAX - STEP_BACK_BYTES_MAX ? 0 : 0;",
        "A peer that takes what is in front of a question is alive",
        ("tests/test_deadlines.py::test_a_peer_that_takes_its_backlog_is_alive",),
    ),
    Mutant(
        "judged-before-read",
        "uring_shim/upkeep.c",
        "return input == URS_INPUT_WAITS || (input == URS_INPUT_ENDS && !again);",
        "return again && !again;",
        "What has arrived is read before a peer is judged",
        ("tests/test_deadlines.py::test_pongs_that_came_while_the_server_stalled_count",),
    ),
    Mutant(
        "talk-puts-off-the-end",
        "uring_shim/upkeep.c",
        "passed = !input_waits(session) || (passed && !first && session->receive_state != URS_RECEIVE_AWAITS_BUFFER);",
        "passed = !input_waits(session);",
        "No peer delays the end of a close by sending more",
        ("tests/test_liveness.py::test_close_seconds_max_is_not_put_off_by_bytes_that_wait_at_every_look",),
    ),
    Mutant(
        "pinged-together",
        "uring_shim/deadline.c",
        "SPREAD = 2654435769u;",
        "SPREAD = 0;",
        "Sessions that came together are pinged apart",
        ("tests/test_deadlines.py::test_sessions_that_came_together_are_pinged_apart_also_after_a_stall",),
    ),
    Mutant(
        "cut-page-ends-in-order",
        "uring_shim/upkeep.c",
        """        session->reset = session->question_queued;
""",
        "",
        "A stream that is cut is reset, and does not look whole",
        ("tests/test_deadlines.py::test_a_page_that_the_socket_holds_and_no_peer_reads_is_reset_too",),
    ),
    Mutant(
        "silent-are-answered",
        "uring_shim/upkeep.c",
        """        if (urs_session_is_on(session, URS_LIST_SILENT)) {
""",
        """        if (false) {
""",
        "A connection that has sent nothing is not answered",
        ("tests/test_deadlines.py::test_a_connection_that_sent_nothing_is_closed_without_an_answer",),
    ),
    Mutant(
        "silent-never-give-way",
        "uring_shim/admission.c",
        "while (reactor->options.silent_ms != 0 && reactor->silent_first != 0)",
        "while (false)",
        "The oldest silent connection gives way to a newcomer",
        ("tests/test_deadlines.py::test_the_oldest_silent_connection_gives_way_to_a_newcomer",),
    ),
    Mutant(
        "paused-are-judged",
        "uring_shim/upkeep.c",
        "if (!urs_session_is_paused(session) && judge_silence(reactor, session))",
        "if (judge_silence(reactor, session))",
        "A peer that is not listened to is not silent",
        ("tests/test_liveness.py::test_a_peer_that_is_not_listened_to_is_not_silent",),
    ),
    Mutant(
        "taken-once-counts-for-ever",
        "uring_shim/upkeep.c",
        "        session->taken = idle_due = false;",
        "        idle_due = false;",
        "A peer that stops taking its backlog is idle",
        ("tests/test_deadlines.py::test_a_peer_that_stops_taking_its_backlog_is_idle",),
    ),
    # Lifetime
    Mutant(
        "ids-repeat",
        "uring_shim/session.c",
        """    if (session->generation == 0)
        return;
""",
        "",
        "An id is never given twice",
        ("tests/test_core.py::test_case",),
    ),
    Mutant(
        "events-lost-to-exceptions",
        "uring_shim/turn.c",
        """    if (URS_UNLIKELY(*reactor->options.handled < reactor->event_count))
        return (int)reactor->event_count;
""",
        "",
        "No event of a turn is lost to an exception",
        ("tests/test_interrupts.py::test_an_exception_anywhere_loses_no_event",),
    ),
    Mutant(
        "closed-without-shutdown",
        "uring_shim/lifecycle.c",
        "if (session->state != URS_SESSION_AWAIT_END || urs_session_is_receiving(session)\n",
        "if (urs_session_is_receiving(session)\n",
        "A peer sees the end though a forked child keeps the socket",
        ("tests/test_endings.py::test_a_peer_sees_the_end_though_a_forked_child_keeps_the_socket",),
    ),
    Mutant(
        "pool-over-4-gib",
        "uring_shim/pool.c",
        "return bytes < UINT32_MAX ? (size_t)bytes : 0;",
        "return (size_t)bytes;",
        "No pool is so large that messages cannot be told apart",
        ("tests/test_options.py::test_a_pool_of_4_gib_is_refused",),
    ),
    Mutant(
        "signal-handlers-blamed-on-handlers",
        "src/uringws/dispatch.py",
        """                            pass
                return
            except Exception as error:
                if connection is None or on_message is ignore or not came_out_of(on_message, error):
""",
        """                            pass
                return
            except Exception as error:
                if connection is None or on_message is ignore:
""",
        "What a signal handler raises gets out of `run`",
        ("tests/test_interrupts.py::test_an_exception_anywhere_loses_no_event",),
    ),
    Mutant(
        "handler-asked-twice",
        "src/uringws/upgrade.py",
        "            if upgrade.handler_called:",
        "            if False:",
        "A handler is asked once about a request",
        ("tests/test_interrupts.py::test_an_interrupt_while_a_request_is_decided_on_is_answered_500",),
    ),
    Mutant(
        "nodelay-always",
        "uring_shim/reactor.c",
        "    if (!is_unix && reactor->rules.sets[rules].tcp_nodelay)",
        "    if (!is_unix)",
        "`tcp_nodelay` holds for adopted sockets",
        ("tests/test_adoption.py::test_tcp_nodelay_is_set_where_the_options_say_so",),
    ),
    # Handlers and options of listeners and adopted sessions
    Mutant(
        "one-set-of-rules",
        "uring_shim/lifecycle.c",
        "    session->rules = rules;",
        "    session->rules = 0;",
        "Limits are those of the listener or adopted session",
        (
            "tests/test_services.py::test_message_limits_are_those_of_the_listener",
            "tests/test_services.py::test_message_limits_are_those_of_the_adopted_session",
            "tests/test_services.py::test_deadlines_are_those_of_the_connection",
        ),
    ),
    Mutant(
        "own-handler-gets-every-message",
        "src/uringws/dispatch.py",
        "                    on_message = (connection._service or own).on_message",
        "                    on_message = own.on_message",
        "A message goes to the handler of its connection",
        (
            "tests/test_services.py::test_each_listener_calls_its_own_handler",
            "tests/test_services.py::test_an_adopted_session_has_the_handler_that_it_was_given",
        ),
    ),
    Mutant(
        "first-handler-gets-every-message",
        "src/uringws/dispatch.py",
        "        elif service is not self._first:\n            self._on_message = None\n",
        "        elif service is not self._first:\n            pass\n",
        "A message goes to the handler of its connection",
        ("tests/test_services.py::test_a_handler_may_be_added_by_a_callback",),
    ),
    Mutant(
        "own-handler-gets-every-request",
        "src/uringws/dispatch.py",
        "self._by_listener.get(item.count, self._own)",
        "self._own",
        "An opening request goes to the handler of its listener",
        ("tests/test_services.py::test_each_listener_calls_its_own_handler",),
    ),
    Mutant(
        "shared-options-may-differ",
        "src/uringws/options.py",
        "        if value != shared:",
        "        if False:",
        "Options that all connections share cannot differ",
        ("tests/test_services.py::test_a_field_that_all_connections_share_cannot_differ",),
    ),
    Mutant(
        "listener-place-taken-too-early",
        "uring_shim/reactor.c",
        " && listener->requests == 0)",
        ")",
        "A request goes to the handler of its listener, though that is closed",
        (
            "tests/test_services.py::test_a_request_is_answered_by_the_handler_of_its_listener_though_others_listen_since",
        ),
    ),
    Mutant(
        "echo-of-masked-frames-of-a-server",
        "uring_shim/engine.c",
        "        || (frame_rules(engine) & ~URS_FRAME_RSV1_ALLOWED) != URS_FRAME_FROM_CLIENT",
        "",
        "A server's frames have no mask",
        ("tests/test_engine.py::test_an_engine_whose_peer_is_a_server_takes_only_frames_without_a_mask",),
    ),
    # Watches, the event loop and the thread
    Mutant(
        "watch-looks-once",
        "uring_shim/watch.c",
        "watches->due = watches->due || !watch->armed;",
        "(void)watch;",
        "A descriptor that was not read empty is reported again",
        ("tests/test_watches.py::test_a_descriptor_is_reported_by_each_turn_until_it_is_read_empty",),
    ),
    Mutant(
        "watch-keeps-the-file",
        "uring_shim/watch.c",
        "    close(watch->fd);\n    watch->fd = -1;",
        "    watch->fd = -1;",
        "A cancelled watch leaves nothing open",
        ("tests/test_watches.py::test_nothing_is_left_of_a_watch_that_was_cancelled",),
    ),
    Mutant(
        "loop-without-a-bound",
        "src/uringws/dispatch.py",
        "if first < count and time.monotonic() >= until:",
        "if first < count and time.monotonic() >= until + 60:",
        "Timers, tasks and descriptors get their turn in the middle of a flood",
        ("tests/test_listen.py::test_timers_tasks_and_descriptors_get_their_turn_in_the_middle_of_a_flood",),
    ),
    Mutant(
        "loop-sends-at-the-end-of-the-flood",
        "src/uringws/dispatch.py",
        'check(lib.urs_reactor_flush_handled(handle), f"{self._core.opened.name} flush")',
        "pass",
        "What was sent leaves after each part of a flood",
        ("tests/test_listen.py::test_timers_tasks_and_descriptors_get_their_turn_in_the_middle_of_a_flood",),
    ),
    Mutant(
        "thread-swallows-its-end",
        "src/uringws/reactor_thread.py",
        "            self._error = error\n",
        "            pass\n",
        "What ends the reactor's thread is raised by `join`",
        ("tests/test_reactor_thread.py::test_an_exception_that_ends_the_reactor_reaches_the_caller",),
    ),
    # Coroutines
    Mutant(
        "interrupted-turn-forgets-a-task",
        "src/uringws/asyncio/selector.py",
        "timeout = 0  # the loop looks at what that made ready",
        "pass",
        "An interrupt delays no message that came before it",
        ("tests/test_asyncio_turns.py::test_an_interrupt_after_a_message_does_not_delay_its_handler",),
    ),
    Mutant(
        "turn-forgets-the-task-woken-before",
        "src/uringws/asyncio/waiters.py",
        "            if earlier is not None:\n                earlier.resume()",
        "            if earlier is not None:\n                pass",
        "Every message reaches its coroutine",
        ("tests/test_asyncio_turns.py::test_messages_that_come_together_reach_their_handlers_in_order",),
    ),
)
