/* SPDX-License-Identifier: Apache-2.0
   Batches of rows over RocksDB's C API, so that Python pays one call per batch. Keys are 8 bytes, values `width`.
   Each function returns 0, or -1 after it has written RocksDB's message into `error` (256 bytes). */
#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  rocksdb_t *db;
  rocksdb_readoptions_t *reading;
  rocksdb_writeoptions_t *writing;
  rocksdb_column_family_handle_t *family;
} Table;

static int failed(char *message, char *error) {
  if (!message) return 0;
  snprintf(error, 256, "%s", message);
  free(message);
  return 1;
}

int table_open(const char *path, size_t cache_bytes, Table **out, char *error) {
  rocksdb_options_t *options = rocksdb_options_create();
  rocksdb_options_set_create_if_missing(options, 1);
  rocksdb_options_increase_parallelism(options, 2);
  rocksdb_options_set_compression(options, rocksdb_no_compression);
  rocksdb_options_set_max_open_files(options, -1);
  rocksdb_block_based_table_options_t *blocks = rocksdb_block_based_options_create();
  rocksdb_block_based_options_set_block_cache(blocks, rocksdb_cache_create_lru(cache_bytes));
  rocksdb_block_based_options_set_format_version(blocks, 5);
  rocksdb_block_based_options_set_data_block_index_type(blocks, 1);
  rocksdb_block_based_options_set_data_block_hash_ratio(blocks, 0.75);
  rocksdb_block_based_options_set_filter_policy(blocks, rocksdb_filterpolicy_create_bloom_full(10));
  rocksdb_options_set_block_based_table_factory(options, blocks);
  const char *names[1] = {"default"};
  const rocksdb_options_t *each[1] = {options};
  Table *table = calloc(1, sizeof(Table));
  char *message = NULL;
  table->db = rocksdb_open_column_families(options, path, 1, names, each, &table->family, &message);
  if (failed(message, error)) return -1;
  table->reading = rocksdb_readoptions_create();
  table->writing = rocksdb_writeoptions_create(); /* write-ahead log on, not synced */
  *out = table;
  return 0;
}

/* `keys` ascend; a key that is not there is an error. */
int table_get(Table *table, size_t count, const char *keys, size_t width, char *out, char *error) {
  enum { PART = 1024 };
  const char *names[PART];
  size_t lengths[PART];
  rocksdb_pinnableslice_t *values[PART];
  char *messages[PART];
  int wrong = 0;
  for (size_t first = 0; first < count && !wrong; first += PART) {
    size_t part = count - first < PART ? count - first : PART;
    for (size_t i = 0; i < part; i++) {
      names[i] = keys + 8 * (first + i);
      lengths[i] = 8;
    }
    rocksdb_batched_multi_get_cf(table->db, table->reading, table->family, part, names, lengths, values, messages,
                                 1);
    for (size_t i = 0; i < part; i++) {
      if (failed(messages[i], error)) wrong = 1;
      size_t size = 0;
      const char *value = values[i] ? rocksdb_pinnableslice_value(values[i], &size) : NULL;
      if (size == width)
        memcpy(out + width * (first + i), value, width);
      else if (!wrong && (wrong = 1))
        snprintf(error, 256, "key %zu has %zu bytes; %zu were wanted", first + i, size, width);
      if (values[i]) rocksdb_pinnableslice_destroy(values[i]);
    }
  }
  return wrong ? -1 : 0;
}

int table_put(Table *table, size_t count, const char *keys, size_t width, const char *values, char *error) {
  rocksdb_writebatch_t *batch = rocksdb_writebatch_create();
  for (size_t i = 0; i < count; i++) rocksdb_writebatch_put(batch, keys + 8 * i, 8, values + width * i, width);
  char *message = NULL;
  rocksdb_write(table->db, table->writing, batch, &message);
  rocksdb_writebatch_destroy(batch);
  return failed(message, error) ? -1 : 0;
}

int table_settle(Table *table, char *error) {
  rocksdb_flushoptions_t *flushing = rocksdb_flushoptions_create();
  char *message = NULL;
  rocksdb_flush(table->db, flushing, &message);
  rocksdb_flushoptions_destroy(flushing);
  if (failed(message, error)) return -1;
  rocksdb_compact_range(table->db, NULL, 0, NULL, 0);
  return 0;
}
