/* Threads that share the work of one pass, made for machines on which other programs run too.
 *
 * The caller leads: it says what the next work is and how many items it has, takes items like everybody else, and goes on
 * when the last one is done. It takes them from the front and helpers take them from the back, so that in one work after
 * another a thread meets the rows that it has in its cache. Nobody waits for a thread that has not taken an item: one that the system has put aside, or
 * that still sleeps, costs its help and nothing else. One that is put aside in the middle of an item is waited for; when
 * that takes more time than the helpers save, the leader works alone for some passes before it tries again.
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
    /* Works that were given out so far (24 bits), end and beginning of the items of this one that are left (20 each). */
    _Alignas(LINE) atomic_ullong ticket;
    _Alignas(LINE) atomic_int done;
    _Alignas(LINE) Task task;
    const void *argument;
    int32_t size, started, items;
    int32_t alone, patience; /* passes that the leader does by itself from now on; how many it will be the next time */
    int64_t began_ns, waited_ns; /* this pass; what of it the leader waited for items that others had taken */
    int32_t leader_cpu; /* helpers are kept off it, -1: off none */
    atomic_int asleep, leader_asleep, stopping;
    pthread_mutex_t mutex;
    pthread_cond_t wake, finished;
    pthread_t *threads;
    char *memory; /* what a pass works in, kept for the next one */
    size_t memory_bytes;
} Team;

/* A team of `size` threads, the caller's included; null if the system has no more threads. */
Team *team_start(int32_t size);
void team_stop(Team *team);

/* Do `items` items of `task`, fewer than 2^20; all are done when it returns. */
void share(Team *team, Task task, const void *argument, int32_t items);

/* Around a pass; `gain` is the share of a pass alone that helpers save at best. */
void begin_pass(Team *team);
void end_pass(Team *team, double gain);

/* At least `bytes` for the present pass, on a page's border; null if there is none. */
void *team_memory(Team *team, size_t bytes);

#endif
