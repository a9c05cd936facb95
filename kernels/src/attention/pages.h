// Counted pages of memory, so that caches whose sequences begin alike share what they have in common.
//
// Pages of one size stand side by side in slabs of address space, whose memory is committed as it is written: so a lone
// sequence lies together, in huge pages. Safe to call from several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "edge.h"

namespace edge {

class PagePool {
   public:
    // slab_bytes: address space that is reserved at a time; at least one page.
    PagePool(uint64_t page_bytes, uint64_t slab_bytes);
    ~PagePool();
    PagePool(const PagePool &) = delete;

    // Makes room for a page, if there is none: so that a pass need not.
    bool prepare();
    // A page with one user and any content; nullptr where no address space is left.
    uint8_t *take();
    // One user more, or one less; a page without users goes back.
    void share(uint8_t *page);
    void release(uint8_t *page);
    bool is_shared(const uint8_t *page) const;

    // Of the pages that have users, each counted once.
    uint64_t used_bytes() const;
    const uint64_t page_bytes;

   private:
    struct Slab;

    Slab *slab_with_room();  // nullptr where no address space is left
    Slab &slab_of(const uint8_t *page) const;
    int32_t &users_of(const uint8_t *page) const;

    const uint64_t slab_pages_;
    mutable std::mutex mutex_;
    std::vector<std::unique_ptr<Slab>> slabs_;
    uint64_t used_ = 0;
};

// The pages of one sequence, in order. They are borrowed from a pool, and some of them may belong to other sequences
// too; what is written must be its own.
class PageTable {
   public:
    explicit PageTable(std::shared_ptr<PagePool> pool, int64_t most_pages);
    ~PageTable() { resize(0); }
    PageTable(const PageTable &) = delete;

    uint8_t *const *pages() const { return pages_.data(); }
    int64_t count() const { return int64_t(pages_.size()); }
    const PagePool *pool() const { return pool_.get(); }

    // Gives back the pages after the first `count`, or takes new ones; false, and nothing has changed, where there are
    // none.
    bool resize(int64_t count);
    // Makes the pages from `first` on its own, with the same content; false where there is no memory for that.
    bool own(int64_t first);
    // The first `count` pages of another table of the same pool, in place of those that it has.
    void share(const PageTable &other, int64_t count);

   private:
    const std::shared_ptr<PagePool> pool_;
    std::vector<uint8_t *> pages_;
};

}  // namespace edge
