/* Memory in pages of its own, for large blocks: it goes back to the system as soon as it is freed. malloc keeps what is
 * freed below anything that is still in use, so that memory of one storm would stay resident for good. */
#ifndef URS_PAGES_H
#define URS_PAGES_H

#include <stddef.h>

/* `bytes` bytes, not initialised; NULL if the system has none. */
void *urs_pages_take(size_t bytes);

/* Gives it back. `bytes` as it was taken; any thread may call. */
void urs_pages_free(void *memory, size_t bytes);

#endif
