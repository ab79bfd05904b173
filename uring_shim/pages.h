/* Memory in pages of its own, for large blocks: it returns to the system as soon as it is freed. malloc may keep freed
 * memory that lies below memory in use, so that the memory of one burst could stay resident for ever. */
#ifndef URS_PAGES_H
#define URS_PAGES_H

#include <stddef.h>

/* Allocates `bytes` bytes, not initialised. Returns NULL if the system has no memory. */
void *urs_pages_take(size_t bytes);

/* Frees memory of urs_pages_take; `bytes` must be the same number. Any thread may call it. */
void urs_pages_free(void *memory, size_t bytes);

#endif
