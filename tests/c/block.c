/* Blocks whose references two threads take and drop at once, for a build with ThreadSanitizer. Prints how many blocks
 * were freed by their last reference. */
#include <assert.h>
#include <pthread.h>
#include <stdio.h>

#include "block.h"

enum { BLOCKS = 200, ROUNDS = 500 };

/* What Python's collector may do in any thread: drop a reference that was taken for it before. */
static void *drop_shared(void *argument)
{
    struct urs_block *block = argument;
    for (int round = 0; round < ROUNDS; round++)
        urs_block_drop(block);
    return NULL;
}

int main(void)
{
    static struct urs_memory memory;
    int freed = 0;
    for (int count = 0; count < BLOCKS; count++) {
        struct urs_block *block = urs_block_new(&memory, 100);
        assert(block != NULL && urs_block_is_sole(block));
        for (int round = 0; round < ROUNDS; round++)
            urs_block_share(block);
        assert(memory.bytes_used == 0);
        pthread_t thread;
        assert(pthread_create(&thread, NULL, drop_shared, block) == 0);
        for (int round = 0; round < ROUNDS; round++) {
            urs_block_hold(block);
            assert(!urs_block_is_sole(block));
            urs_block_drop(block);
        }
        pthread_join(thread, NULL);
        assert(urs_block_is_sole(block));
        urs_block_drop(block);
        freed++;
    }
    printf("%d\n", freed);
    return 0;
}
