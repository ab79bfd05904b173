/* The addresses of peers: how many sessions each address has, and the connections that have not sent a byte yet. */
#ifndef URS_PEERS_H
#define URS_PEERS_H

#include "core.h"

/* Chooses the secret key of the address hash. The clock must be set. */
void urs_peers_open(struct urs_reactor *reactor);

/* Reads the address of the session's peer from the kernel. */
void urs_peers_read(struct urs_session *session);

/* Counts the session for its address. Returns false if the address has as many sessions as it may have. */
bool urs_peers_count(struct urs_reactor *reactor, struct urs_session *session);

/* Counts one session less for an address. `hash` is the one kept in the session; 0 means that the session was not
 * counted. */
void urs_peers_leave(struct urs_reactor *reactor, uint32_t hash);

/* Adds a new session to the end of the list of silent sessions (those that have not sent a byte). */
void urs_peers_silent(struct urs_reactor *reactor, struct urs_session *session);

/* Removes a session from the list of silent sessions (those that have not sent a byte), if it is on the list. */
void urs_peers_spoke(struct urs_reactor *reactor, struct urs_session *session);

#endif
