// What must hold between a manifest and its layers, private to the stage.
#pragma once

#include <string>

#include "moetrim/statistics.h"

namespace moetrim {

/// @param where  names the layer's file, or what is being checked, at the start of the message.
/// @throws InvalidInput when the layer's id, tasks, experts or counted tokens are not the manifest's.
void check_layer(const StatisticsManifest& manifest, std::size_t index, const LayerStatistics& layer,
                 const std::string& where);

/// The same for second-order statistics: id, tasks, experts, width, and no more routed tokens than there were.
void check_atoms(const StatisticsManifest& manifest, std::size_t index, const AtomStatistics& atoms,
                 const std::string& where);

/// Both for every layer, and for their number: all that the manifest announces, and no more.
void check_statistics(const Statistics& statistics, const std::string& where);

}  // namespace moetrim
