/* Takes pages from the system. Under AddressSanitizer malloc is used, because it watches no other memory. */
#define _GNU_SOURCE
#include "pages.h"

#include <stdlib.h>
#include <sys/mman.h>

#include "base.h"

#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define WATCHED
#endif
#endif
#ifdef __SANITIZE_ADDRESS__
#define WATCHED
#endif

#ifdef WATCHED

void *urs_pages_take(size_t bytes) { return malloc(bytes); }

void urs_pages_free(void *memory, size_t bytes)
{
    (void)bytes;
    free(memory);
}

#else

void *urs_pages_take(size_t bytes)
{
    URS_ASSERT(bytes > 0);
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

void urs_pages_free(void *memory, size_t bytes)
{
    URS_ASSERT(memory != NULL && bytes > 0);
    /* munmap fails only if it would split a mapping and the process has as many mappings as it may have. Then at least
     * the pages are returned. */
    if (munmap(memory, bytes) != 0)
        (void)madvise(memory, bytes, MADV_DONTNEED);
}

#endif
