/* Threads that share the work of one pass, made for machines on which other programs run too.
 *
 * The caller leads: it says what the next work is and how many items it has, takes items like everybody else, and goes on
 * when the last one is done. Nobody waits for a thread that has not taken an item: one that the system has put aside, or
 * that still sleeps, costs its help and nothing else.
 */

#ifndef TEAM_H
#define TEAM_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stddef.h>

#define LINE 64 /* bytes in a cache line */

/* One item; `worker` numbers the thread that does it. */
typedef void (*Task)(const void *argument, int32_t item, int32_t worker);

typedef struct Team {
    /* Works that were given out so far (24 bits), items of this one (20), items taken (20). */
    _Alignas(LINE) atomic_ullong ticket;
    _Alignas(LINE) atomic_int done;
    _Alignas(LINE) Task task;
    const void *argument;
    int32_t size, started;
    atomic_int asleep, stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake;
    pthread_t *threads;
    char *memory; /* what a pass works in, kept for the next one */
    size_t memory_bytes;
} Team;

/* A team of `size` threads, the caller's included; null if the system has no more threads. */
Team *team_start(int32_t size);
void team_stop(Team *team);

/* Do `items` items of `task`, fewer than 2^20; all are done when it returns. */
void share(Team *team, Task task, const void *argument, int32_t items);

/* At least `bytes` for the present pass, on a page's border; null if there is none. */
void *team_memory(Team *team, size_t bytes);

#endif
