/* The ring of `rtseg drive -o X.ring`: its layout, and reading the newest message.
 *
 * C99 with POSIX, for little-endian machines. docs/drive.md describes the layout. */
#ifndef RTSEG_RING_H
#define RTSEG_RING_H

#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { RTSEG_RESULT, RTSEG_LATE, RTSEG_STALE, RTSEG_LOST };
enum { RTSEG_EXPOSURE = 1, RTSEG_DRIVER, RTSEG_SENDER, RTSEG_ARRIVAL, RTSEG_PLAYBACK };
enum { RTSEG_CERTIFIED = 1, RTSEG_CONFIDENCE = 2 };
#define RTSEG_NO_FRAME UINT64_MAX

typedef struct {
    char magic[8]; /* "RTSEGRNG" */
    uint32_t version; /* 1 */
    uint32_t slots;
    uint64_t slot_bytes; /* its header included */
    volatile uint64_t newest; /* in slot (newest - 1) % slots */
    uint8_t reserved[32];
} rtseg_ring_header;

typedef struct {
    uint64_t sequence; /* odd while the slot is written, then 2 x its number */
    uint32_t kind;
    uint32_t crc; /* of what follows, labels included */
    uint64_t frame_id; /* or RTSEG_NO_FRAME */
    uint64_t captured_ns; /* CLOCK_MONOTONIC; 0 where unknown */
    uint64_t captured_wall_ns; /* since 1970; 0 where unknown */
    uint64_t published_ns; /* CLOCK_MONOTONIC */
    uint64_t expires_ns; /* do not use the labels after that, CLOCK_MONOTONIC */
    uint32_t height, width; /* 0 for a status */
    char text[48]; /* level of a result, cause of a status */
    uint32_t age_source; /* what the age counts from: RTSEG_EXPOSURE to RTSEG_PLAYBACK, or 0 */
    uint32_t maps; /* that follow the class ids: RTSEG_CERTIFIED, RTSEG_CONFIDENCE or both */
    uint32_t maps_crc;
    uint8_t reserved[4];
} rtseg_slot; /* height x width class ids follow, then the maps, see rtseg_ring_map */

typedef char rtseg_header_is_64_bytes[sizeof(rtseg_ring_header) == 64 ? 1 : -1];
typedef char rtseg_slot_is_128_bytes[sizeof(rtseg_slot) == 128 ? 1 : -1];

typedef struct {
    const char *path;
    const rtseg_ring_header *memory; /* NULL until there is a ring */
    size_t size;
    ino_t inode;
    rtseg_slot *copy; /* of the slot read last */
} rtseg_ring;

static uint32_t rtseg_crc32(const uint8_t *data, size_t size)
{
    static uint32_t table[256];
    uint32_t crc = UINT32_MAX;
    for (uint32_t i = 0; table[255] == 0 && i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xEDB88320u : 0);
    }
    while (size--)
        crc = crc >> 8 ^ table[(crc ^ *data++) & 255];
    return ~crc;
}

/* A slot's sequence; slots need not lie where a machine can read 8 bytes at once. */
static uint64_t rtseg_sequence(const uint8_t *slot)
{
    uint64_t sequence;
    __sync_synchronize();
    memcpy(&sequence, slot, sizeof sequence);
    __sync_synchronize();
    return sequence;
}

/* Map the file that the name leads to, if it is another one than before: a writer that started
 * again, or that needed more room, put a new one there. */
static int rtseg_ring_follow(rtseg_ring *ring)
{
    struct stat found;
    int file;
    if (stat(ring->path, &found) != 0 || (ring->memory && found.st_ino == ring->inode))
        return ring->memory != NULL;
    if ((file = open(ring->path, O_RDONLY)) < 0)
        return ring->memory != NULL;
    void *fresh = MAP_FAILED;
    if (fstat(file, &found) == 0 && found.st_size >= (off_t)sizeof(rtseg_ring_header))
        fresh = mmap(NULL, (size_t)found.st_size, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (fresh == MAP_FAILED)
        return ring->memory != NULL;
    const rtseg_ring_header *head = fresh;
    uint64_t room = (uint64_t)found.st_size - sizeof *head;
    if (memcmp(head->magic, "RTSEGRNG", 8) != 0 || head->version != 1 || head->slots == 0
        || head->slot_bytes < sizeof(rtseg_slot) || head->slot_bytes > room / head->slots) {
        munmap(fresh, (size_t)found.st_size);
        return ring->memory != NULL;
    }
    if (ring->memory)
        munmap((void *)ring->memory, ring->size);
    free(ring->copy);
    ring->memory = head, ring->size = (size_t)found.st_size, ring->inode = found.st_ino;
    ring->copy = malloc(head->slot_bytes);
    return ring->copy != NULL;
}

/* The newest message, if its number is above *after, which becomes its number; NULL where there is
 * none, or no ring yet: a reader may start before the writer. It is valid until the next call. */
static const rtseg_slot *rtseg_ring_latest(rtseg_ring *ring, uint64_t *after)
{
    if (!rtseg_ring_follow(ring))
        return NULL;
    const rtseg_ring_header *head = ring->memory;
    for (int tries = 0; tries < 8; tries++) {
        uint64_t number = head->newest;
        if (number <= *after)
            return NULL;
        uint64_t place = (number - 1) % head->slots * head->slot_bytes;
        const uint8_t *at = (const uint8_t *)(head + 1) + place;
        uint64_t before = rtseg_sequence(at);
        memcpy(ring->copy, at, head->slot_bytes);
        rtseg_slot *slot = ring->copy;
        uint64_t pixels = (uint64_t)slot->height * slot->width;
        if (before != 2 * number || rtseg_sequence(at) != before
            || pixels > head->slot_bytes - sizeof *slot || slot->kind > RTSEG_LOST
            || (slot->kind == RTSEG_RESULT) != (pixels > 0)
            || slot->crc != rtseg_crc32((const uint8_t *)slot + 16, sizeof *slot - 16 + pixels))
            continue; /* the writer came round meanwhile */
        *after = number;
        return slot;
    }
    return NULL;
}

/* A map of the result that was read last, height x width: RTSEG_CERTIFIED (255 or 0) or
 * RTSEG_CONFIDENCE (in 255ths); NULL if it has none, or it is damaged. */
static inline const uint8_t *rtseg_ring_map(const rtseg_ring *ring, uint32_t which)
{
    const rtseg_slot *slot = ring->copy;
    uint64_t pixels = (uint64_t)slot->height * slot->width;
    uint32_t held = (slot->maps & 1) + (slot->maps >> 1 & 1);
    const uint8_t *maps = (const uint8_t *)(slot + 1) + pixels;
    if (!(slot->maps & which) || pixels * (1 + held) > ring->memory->slot_bytes - sizeof *slot
        || slot->maps_crc != rtseg_crc32(maps, pixels * held))
        return NULL;
    return which == RTSEG_CONFIDENCE && held == 2 ? maps + pixels : maps;
}

#endif
