/* The table of rules of one reactor. It only grows: sessions refer to their rules until they end. */
#include "rules.h"

#include <errno.h>
#include <stdlib.h>

enum { ROOM_MIN = 2 };

int urs_rules_add(struct urs_rules_table *table, const struct urs_rules *rules)
{
    URS_ASSERT(rules->backlog_bytes_max > 0 && rules->backlog_high_bytes <= rules->backlog_bytes_max);
    URS_ASSERT(rules->header_bytes_max > 0 && rules->session_turn_bytes_max > 0);
    URS_ASSERT(rules->engine.deflate.level <= 9 && rules->engine.deflate.memory_level <= 9);
    if (table->count == URS_RULES_MAX)
        return URS_ERROR_LIMIT;
    if (table->count == table->room) {
        uint32_t room = (uint32_t)urs_max(ROOM_MIN, 2 * (size_t)table->room);
        struct urs_rules *sets = realloc(table->sets, room * sizeof *sets);
        if (sets == NULL)
            return -ENOMEM;
        table->sets = sets;
        table->room = room;
    }
    table->sets[table->count] = *rules;
    return (int)table->count++;
}

void urs_rules_clear(struct urs_rules_table *table)
{
    free(table->sets);
    *table = (struct urs_rules_table){0};
}
