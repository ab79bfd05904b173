/* The addresses of peers: how many sessions each address has, and the connections that have not sent a byte yet. Nothing
 * here ends a session. */
#define _GNU_SOURCE
#include "peers.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>

enum { IPS_MIN = 256 };

/* ---- sessions by address ------------------------------------------------------------------------------------ */

struct urs_ip_count {
    uint32_t hash;                       /* 0: the entry is empty */
    uint32_t count;
};

void urs_peers_read(struct urs_session *session)
{
    struct sockaddr_storage address = {0};
    socklen_t size = sizeof address;
    if (getpeername(session->fd, (struct sockaddr *)&address, &size) != 0)
        return;
    if (address.ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&address;
        memcpy(session->peer.address, &in->sin_addr, 4);
        session->peer.port = ntohs(in->sin_port);
        session->peer.family = 4;
    } else if (address.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&address;
        /* An IPv4 peer on a socket that accepts both families: a peer has the same address on every listener. */
        bool is_mapped = IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
        memcpy(session->peer.address, in6->sin6_addr.s6_addr + (is_mapped ? 12 : 0), is_mapped ? 4 : 16);
        session->peer.port = ntohs(in6->sin6_port);
        session->peer.family = is_mapped ? 4 : 6;
    }
}

void urs_peers_open(struct urs_reactor *reactor)
{
    /* If a kernel or a sandbox refuses getrandom, the key is only hard to guess. */
    if (getrandom(reactor->ip_key, sizeof reactor->ip_key, 0) == (ssize_t)sizeof reactor->ip_key)
        return;
    reactor->ip_key[0] = reactor->now_us;
    reactor->ip_key[1] = (uint64_t)(uintptr_t)reactor;
}

static uint64_t rotate_left(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }

static void sip_round(uint64_t v[4])
{
    v[0] += v[1];
    v[2] += v[3];
    v[1] = rotate_left(v[1], 13) ^ v[0];
    v[3] = rotate_left(v[3], 16) ^ v[2];
    v[0] = rotate_left(v[0], 32);
    v[2] += v[1];
    v[0] += v[3];
    v[1] = rotate_left(v[1], 17) ^ v[2];
    v[3] = rotate_left(v[3], 21) ^ v[0];
    v[2] = rotate_left(v[2], 32);
}

/* SipHash-1-3 of one word. Its last block holds the size in bytes. */
static uint64_t sip_hash(const uint64_t key[2], uint64_t word, uint64_t bytes)
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575, key[1] ^ 0x646f72616e646f6d, key[0] ^ 0x6c7967656e657261,
                     key[1] ^ 0x7465646279746573};
    const uint64_t blocks[2] = {word, bytes << 56};
    for (size_t index = 0; index < URS_COUNT(blocks); index++) {
        v[3] ^= blocks[index];
        sip_round(v);
        v[0] ^= blocks[index];
    }
    v[2] ^= 0xff;
    for (int round = 0; round < 3; round++)
        sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* Returns a number for the address, by which its sessions are counted. An IPv6 address gets the number of its /64,
 * because one peer owns a /64. Two addresses with the same number share a limit. The key is secret and different per
 * reactor: otherwise a stranger with many addresses could choose one that has the same number as a victim, and use up
 * the victim's limit. */
static uint32_t peer_hash(const struct urs_reactor *reactor, const struct urs_peer *peer)
{
    static const uint8_t mapped[12] = {[10] = 0xff, [11] = 0xff};
    URS_ASSERT(peer->family != 6 || memcmp(peer->address, mapped, sizeof mapped) != 0);
    size_t count = peer->family == 4 ? 4 : 8;
    uint64_t word = 0;
    memcpy(&word, peer->address, count);
    return peer->family == 0 ? 0 : (uint32_t)sip_hash(reactor->ip_key, word, count) | 1u;
}

static struct urs_ip_count *ip_entry(const struct urs_reactor *reactor, uint32_t hash)
{
    uint32_t mask = reactor->ips_room - 1;
    uint32_t index = hash >> 1 & mask;  /* the lowest bit is always set */
    while (reactor->ips[index].hash != 0 && reactor->ips[index].hash != hash)
        index = (index + 1) & mask;
    return &reactor->ips[index];
}

/* Rebuilds the table with the addresses that have sessions. Entries with count 0 were kept until now as tombstones, so
 * that no probe sequence was broken. They are dropped here: otherwise the table would grow with every address ever
 * seen. */
static int ips_renew(struct urs_reactor *reactor)
{
    uint32_t old_room = reactor->ips_room;
    struct urs_ip_count *old = reactor->ips;
    uint32_t live = 0;
    for (uint32_t index = 0; index < old_room; index++)
        live += old[index].count > 0;
    uint32_t room = IPS_MIN;
    while (room < 4 * (live + 1))
        room *= 2;
    struct urs_ip_count *ips = calloc(room, sizeof *ips);
    if (ips == NULL)
        return -ENOMEM;
    reactor->ips = ips;
    reactor->ips_room = room;
    reactor->ips_used = 0;
    for (uint32_t index = 0; index < old_room; index++) {
        if (old[index].count > 0) {
            *ip_entry(reactor, old[index].hash) = old[index];
            reactor->ips_used++;
        }
    }
    free(old);
    return 0;
}

/* Counts one more session for that address. Returns false if the address has as many sessions as it may have. */
static bool ip_enter(struct urs_reactor *reactor, uint32_t hash)
{
    if (hash == 0)
        return true;
    if (2 * (reactor->ips_used + 1) > reactor->ips_room && ips_renew(reactor) != 0)
        return false;
    struct urs_ip_count *entry = ip_entry(reactor, hash);
    if (entry->count >= reactor->options.sessions_per_ip_max)
        return false;
    if (entry->hash == 0) {
        entry->hash = hash;
        reactor->ips_used++;
    }
    entry->count++;
    return true;
}

void urs_peers_leave(struct urs_reactor *reactor, uint32_t hash)
{
    if (hash == 0)
        return;
    struct urs_ip_count *entry = ip_entry(reactor, hash);
    URS_ASSERT(entry->hash == hash && entry->count > 0);
    entry->count--;
}

bool urs_peers_count(struct urs_reactor *reactor, struct urs_session *session)
{
    if (reactor->options.sessions_per_ip_max == 0)
        return true;
    uint32_t hash = peer_hash(reactor, &session->peer);
    if (!ip_enter(reactor, hash))
        return false;
    session->peer_hash = hash;
    return true;
}

/* ---- connections that have not sent a byte -------------------------------------------------------------------- */

void urs_peers_silent(struct urs_reactor *reactor, struct urs_session *session)
{
    URS_ASSERT(session->state == URS_SESSION_AWAIT_HEAD);
    URS_ASSERT((reactor->silent_first == 0) == (reactor->silent_last == 0));
    urs_session_join(session, URS_LIST_SILENT);
    session->silent_next = 0;
    session->silent_previous = reactor->silent_last;
    if (reactor->silent_last != 0)
        urs_core_session(reactor, reactor->silent_last - 1)->silent_next = session->slot + 1;
    else
        reactor->silent_first = session->slot + 1;
    reactor->silent_last = session->slot + 1;
}

void urs_peers_spoke(struct urs_reactor *reactor, struct urs_session *session)
{
    if (!urs_session_is_on(session, URS_LIST_SILENT))
        return;
    URS_ASSERT(session->state == URS_SESSION_AWAIT_HEAD);
    if (session->silent_previous != 0)
        urs_core_session(reactor, session->silent_previous - 1)->silent_next = session->silent_next;
    else
        reactor->silent_first = session->silent_next;
    if (session->silent_next != 0)
        urs_core_session(reactor, session->silent_next - 1)->silent_previous = session->silent_previous;
    else
        reactor->silent_last = session->silent_previous;
    urs_session_leave(session, URS_LIST_SILENT);
    session->silent_next = session->silent_previous = 0;
}
