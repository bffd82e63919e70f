// The cards, and what a round of them comes to.

export const DECK = [1, 2, 3, 5, 8, 13, 20, "?"] as const;
export type Card = (typeof DECK)[number];

export interface Summary {
  votes: number;
  average: number | null;
  agreed: boolean;
}

export function summarize(cards: Card[]): Summary {
  const numbers = cards.filter((card) => card !== "?");
  return {
    votes: cards.length,
    average: numbers.length ? numbers.reduce((sum, card) => sum + card, 0) / numbers.length : null,
    agreed: cards.length > 0 && new Set(cards).size === 1,
  };
}
