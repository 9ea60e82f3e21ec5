/* Print the newest masks from shared memory: class by class, how much of the picture it has.
 *
 * cc -O2 -o ring_reader ring_reader.c
 * ./ring_reader /dev/shm/labels.ring 10
 */
#define _POSIX_C_SOURCE 200809L
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "rtseg_ring.h"

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static const char *sources[] = {"unknown", "exposure", "driver", "sender", "arrival", "playback"};

static void print_result(const rtseg_slot *slot, const uint8_t *certified)
{
    const uint8_t *labels = (const uint8_t *)(slot + 1);
    size_t pixels = (size_t)slot->height * slot->width, counts[256] = {0};
    for (size_t i = 0; i < pixels; i++)
        counts[labels[i]]++;
    printf("frame %" PRIu64 " %ux%u age_ms %.1f", slot->frame_id, slot->height,
           slot->width, (double)(now_ns() - slot->captured_ns) / 1e6);
    printf(" from %s", slot->age_source < 6 ? sources[slot->age_source] : "unknown");
    printf(" classes");
    for (int id = 0; id < 256; id++)
        if (counts[id])
            printf(" %d:%zu", id, counts[id]);
    size_t sure = 0;
    for (size_t i = 0; certified && i < pixels; i++)
        sure += certified[i] != 0;
    if (certified)
        printf(" certified %zu", sure);
    printf(" crc %08x\n", slot->crc);
}

int main(int count, char **words)
{
    static const char *kinds[] = {"RESULT", "LATE", "STALE", "LOST"};
    if (count < 2) {
        fprintf(stderr, "usage: %s RING [MESSAGES]\n", words[0]);
        return 2;
    }
    rtseg_ring ring = {.path = words[1]};
    long wanted = count > 2 ? atol(words[2]) : 0;
    uint64_t newest = 0;
    for (long seen = 0; wanted == 0 || seen < wanted;) {
        const rtseg_slot *slot = rtseg_ring_latest(&ring, &newest);
        if (!slot) { /* nothing new, or the writer has not started */
            nanosleep(&(struct timespec){0, 1000000}, NULL);
            continue;
        }
        seen++;
        if (slot->kind != RTSEG_RESULT)
            printf("no mask: %s (%.48s)\n", kinds[slot->kind], slot->text);
        else if (now_ns() < slot->expires_ns)
            print_result(slot, rtseg_ring_map(&ring, RTSEG_CERTIFIED));
        fflush(stdout);
    }
    return 0;
}
