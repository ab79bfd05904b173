/* Allocation functions that fail on demand. The shim's sources are compiled with malloc, calloc and realloc renamed to
 * these. */
#ifndef FUZZ_ALLOCATE_H
#define FUZZ_ALLOCATE_H

#include "support.h"

void *fuzz_malloc(size_t bytes);
void *fuzz_calloc(size_t count, size_t bytes);
void *fuzz_realloc(void *old, size_t bytes);

/* The number of the next call that fails, counted from the next one; 0: no call fails. */
static uint32_t allocations_left;

static bool allocation_fails(void) { return allocations_left > 0 && --allocations_left == 0; }

void *fuzz_malloc(size_t bytes) { return allocation_fails() ? NULL : malloc(bytes); }
void *fuzz_calloc(size_t count, size_t bytes) { return allocation_fails() ? NULL : calloc(count, bytes); }
void *fuzz_realloc(void *old, size_t bytes) { return allocation_fails() ? NULL : realloc(old, bytes); }

#endif
